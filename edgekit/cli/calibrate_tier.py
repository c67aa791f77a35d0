"""A cloud tier that `edgekit calibrate` asks over the network."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from edgekit.bundle.manifest import SHA256
from edgekit.bundle.sample_rows import run_bytes, run_samples
from edgekit.cli.common.cloud_files import read_api_key
from edgekit.cli.common.console import needs_extra, note
from edgekit.errors import CloudError, DataError, RefusedError, SettingsError
from edgekit.protocols import CloudAnswer
from edgekit.tensors import Array

if TYPE_CHECKING:
    from converters.cascade.bundles import Tier
    from device_agents.inference.cloud_client import CloudClient
    from edgekit.bundle.manifest import Manifest

ROWS = 32  # of one request
CALL_SECONDS = 60.0
TRIES = 8  # of one request, once the tier has answered one
TOLD_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 30.0  # before a further try, also where the tier says more


_FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS = (
    click.option("--api-key-file", type=_FILE, help="File that holds the tier's API key."),
    click.option("--cloud-ca", type=_FILE, help="PEM file of the authority that signed the tier's certificate."),
    click.option("--cloud-certificate", type=_FILE, help="PEM file of a client certificate for the tier."),
    click.option("--cloud-key", type=_FILE, help="PEM file of that certificate's private key."),
    click.option("--cloud-unencrypted", is_flag=True, help="Let the API key travel over http:// to another host."),
)


class Access(NamedTuple):
    """How the tier is reached, as the options say; the agent has settings of the same names.

    Attributes:
        api_key_file: File with the key; None for none.
        cloud_ca: PEM file of the tier's authority; None for the system's authorities.
        cloud_certificate, cloud_key: PEM files of a client certificate and its private key; None for none.
        cloud_unencrypted: Whether the key may travel where it can be read.
    """

    api_key_file: Path | None
    cloud_ca: Path | None
    cloud_certificate: Path | None
    cloud_key: Path | None
    cloud_unencrypted: bool

    def refuse_without_url(self, cloud: str) -> None:
        """Raises UsageError where options are given that a bundle or a file has no use for."""
        if given := _named(self):
            raise click.UsageError(f"{given}: given, but --cloud is {cloud!r}, expected the URL of a tier.")

    def client(self, cloud: str, model: str) -> CloudClient:
        """A client of a tier.

        Raises:
            SettingsError: the URL or a file cannot be used, or the key would travel where it can be read.
            UsageError: options do not fit the URL or each other.
        """
        from device_agents.inference.cloud.http_client import without_user
        from device_agents.inference.cloud.protection import client_tls, is_readable
        from device_agents.inference.cloud_client import CloudClient

        files = self._replace(api_key_file=None, cloud_unencrypted=False)
        if (self.cloud_certificate is None) != (self.cloud_key is None):
            raise click.UsageError("--cloud-certificate and --cloud-key belong together: give both, or neither.")
        is_tls = cloud.lower().startswith("https://")
        if (given := _named(files)) and not is_tls:
            raise click.UsageError(f"{given}: given, but --cloud is {cloud!r}, expected https://...")
        if self.api_key_file is not None and is_readable(cloud) and not self.cloud_unencrypted:
            raise SettingsError(
                f"the API key would travel unencrypted to {without_user(cloud)}",
                advice="Use https://, or give --cloud-unencrypted where nobody else can read what is sent.",
            )
        tls = client_tls(self.cloud_ca, self.cloud_certificate, self.cloud_key) if is_tls else None
        key = read_api_key(self.api_key_file) if self.api_key_file else ""
        return CloudClient(cloud, model=model, api_key=key, tls=tls)


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `Access` to a command, which gets it as ``access``."""

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        access = Access(**{name: values.pop(name) for name in Access._fields})
        return command(access=access, **values)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _named(access: Access) -> str:
    """The options that were given, for a message."""
    return ", ".join("--" + name.replace("_", "-") for name, value in access._asdict().items() if value)


@contextlib.contextmanager
def remote_tier(
    cloud: str, model: str, access: Access, manifest: Manifest, first: Mapping[str, Array], *, original: bool
) -> Iterator[Tier]:
    """A tier that is asked over the network.

    Args:
        cloud: Its URL.
        model: Name of the model there.
        access: Key, certificates and permissions for it.
        manifest: Of the edge bundle.
        first: The sample that is sent to learn the digest of the model.
        original: True where samples are sent as bytes.

    Raises:
        CloudError: the tier gives no answer, also not after some waiting where it answered before.
        DataError: its model has no such output.
        RefusedError: its digest changes, or is no sha256.
        SettingsError, UsageError: `access` does not fit the URL.
    """
    from converters.cascade.bundles import BYTES_ROWS, MOST_BYTES, Tier

    with needs_extra("agent"):
        client = access.client(cloud, model)
    asked = _Asked(client, model, manifest.task.output, original=original)
    inputs = [one.spec for one in manifest.inputs]
    outputs = [one.spec for one in manifest.outputs if one.spec.name == manifest.task.output]

    def run(samples: Mapping[str, Array]) -> dict[str, Array]:
        if original:
            return run_bytes(asked, [manifest.task.output], samples, rows=BYTES_ROWS, most_bytes=MOST_BYTES)
        return run_samples(asked, inputs, outputs, samples, rows=ROWS)

    with asked:
        run(first)
        assert asked.digest is not None  # it has answered
        if asked.digest and not SHA256.fullmatch(asked.digest):
            raise RefusedError(
                f"the cloud tier reports {asked.digest[:80]!r} as edgekit_model, expected the sha256 of its model in "
                "hexadecimal digits, lower case",
                advice="A name or version does not tell that a model was changed.",
            )
        yield Tier(model, asked.digest, run)


class _Asked:
    """Asks a tier, and waits where it is overloaded or fails for a time.

    Args:
        client: Its client.
        model, output: Names of the model there and of the output that is needed.
        original: True where samples are sent as bytes.

    Attributes:
        digest: Of its model, as the first answer reports it; None before that.
    """

    def __init__(self, client: CloudClient, model: str, output: str, *, original: bool) -> None:
        self._client, self._model, self._output = client, model, output
        self._postprocess = False if original else None  # without the steps after the model, as devices ask
        self._loop = asyncio.new_event_loop()
        self.digest: str | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        self._client.close()
        self._loop.close()

    def __call__(self, feed: dict[str, Array]) -> dict[str, Array]:
        answer = self._ask(feed)
        if self.digest not in (None, answer.digest):
            raise RefusedError(
                "the cloud tier's model changed while it was asked", advice="Run the command again when it is stable."
            )
        self.digest = answer.digest
        if self._output not in answer.outputs:
            raise DataError(
                f"the cloud tier's model {self._model!r} gives no output {self._output!r}; it gives "
                f"{', '.join(map(repr, answer.outputs)) or 'none that can be read'}",
                advice="Both models need the same name for their decision output.",
            )
        return answer.outputs

    def _ask(self, feed: dict[str, Array]) -> CloudAnswer:
        from device_agents.inference.cloud.failures import (
            CloudOverloadedError,
            CloudRefusedError,
            CloudUnusableError,
        )

        for number in range(1, TRIES + 1):
            try:
                return self._loop.run_until_complete(
                    self._client.infer(self._model, feed, timeout_seconds=CALL_SECONDS, postprocess=self._postprocess)
                )
            except (CloudRefusedError, CloudUnusableError):
                raise
            except CloudError as error:
                is_overload = isinstance(error, CloudOverloadedError)
                if number == TRIES or (self.digest is None and not is_overload):
                    raise
                wanted = error.retry_after_seconds if isinstance(error, CloudOverloadedError) else None
                wait = min(2.0**number / 4 if wanted is None else wanted, LONGEST_WAIT_SECONDS)
                if wait >= TOLD_SECONDS:
                    note(f"{error}; asking again in {wait:.0f} s")
                time.sleep(wait)
        raise AssertionError("not reached: the last try raises or returns")
