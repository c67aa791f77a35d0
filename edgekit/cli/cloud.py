"""`edgekit cloud`: runs the cloud tier."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import control_settings, ignore_hangup, needs_extra, step
from edgekit.cli.common.cpus import usable_cpus
from edgekit.cli.common.numbers import Whole
from edgekit.errors import RefusedError, SettingsError
from edgekit.serving.http.addresses import is_loopback
from edgekit.serving.http.limits import Limits

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest

MAX_REQUEST_BYTES = 64 * 1024**2
MIN_KEY_LENGTH = 16

FetchBundle = Callable[[str], "tuple[Manifest, Path]"]


@click.group()
def cloud() -> None:
    """Run the cloud tier, which answers the requests that devices send on."""


@cloud.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--registry", "url", metavar="URL", help="file://, s3://, gs:// or az:// store.")
@click.option(
    "--root", type=click.Path(path_type=Path, dir_okay=False), help="Trusted TUF root [default: root.json of the keys]."
)
@click.option("--host", help="Address to listen on [default: 127.0.0.1].")
@click.option("--port", type=Whole(0, 65535), help="0 takes any free port [default: 8700].")
@click.option("--grpc-port", type=Whole(0, 65535), help="Serve gRPC on this port too; needs edgekit[grpc].")
@click.option("--api-key-file", type=click.Path(path_type=Path, dir_okay=False), help="File that holds the API key.")
@click.option(
    "--class-key",
    "class_keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private key of a device class, which opens sealed bundles; may be repeated.",
)
@click.option("--target", default="server", show_default=True, help="Target profile whose bundles are served.")
@click.option("--threads", type=Whole(1, 1024), help="Threads of each model's runtime [default: one per CPU].")
def serve(
    models: tuple[str, ...],
    url: str | None,
    root: Path | None,
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    api_key_file: Path | None,
    class_keys: tuple[Path, ...],
    target: str,
    threads: int | None,
) -> None:
    """Serve the newest version of each MODEL over Open Inference Protocol v2 until interrupted.

    Bundles come from the registry and are verified. When every model has passed its self-test, one line with the URL
    is printed. An address that is not loopback needs an API key.

    \b
    Examples:
      edgekit cloud serve digits-cloud
      edgekit cloud serve digits-cloud --host 0.0.0.0 --api-key-file cloud.key
      edgekit cloud serve digits-cloud --grpc-port 8701
      edgekit cloud serve digits-cloud --class-key cloud-class.key
    """
    settings = control_settings(
        registry=url,
        cloud_host=host,
        cloud_port=port,
        cloud_grpc_port=grpc_port,
        cloud_api_key_file=api_key_file,
        cloud_class_keys=class_keys or None,
    )
    local_only = is_loopback(settings.cloud_host)
    key = read_api_key(settings.cloud_api_key_file) if settings.cloud_api_key_file else ""
    if not key and not local_only:
        raise SettingsError(
            f"without an API key the cloud tier listens on loopback only, not on {settings.cloud_host}",
            advice=_MAKE_KEY.format(file="cloud.key") + " Then give --api-key-file cloud.key.",
        )
    ignore_hangup()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before it serves, SIGTERM ends it as Ctrl-C does
    with TemporaryDirectory(prefix="edgekit-cloud-") as folder:
        fetch = _fetcher(
            settings.registry, root or settings.keys / "root.json", target, Path(folder), settings.cloud_class_keys
        )
        host = f"[{settings.cloud_host}]" if ":" in settings.cloud_host else settings.cloud_host
        addresses = [f"{host}:{settings.cloud_port}"]
        if settings.cloud_grpc_port is not None:
            addresses.append(f"{host}:{settings.cloud_grpc_port}")
        limits = Limits(
            connections=settings.cloud_max_connections,
            peer_connections=settings.cloud_max_connections_per_address,
            trusted_proxies=settings.cloud_trusted_proxies,
            drain_seconds=settings.cloud_drain_seconds,
        )
        asyncio.run(_serve(models, fetch, addresses, key, local_only, threads or usable_cpus(), limits))


async def _serve(
    models: tuple[str, ...],
    fetch: FetchBundle,
    addresses: list[str],
    key: str,
    local_only: bool,
    threads: int,
    limits: Limits,
) -> None:
    with needs_extra("cloud"):
        from edgekit.serving.cloud import CloudModels
        from edgekit.serving.endpoints import Endpoints, open_endpoints
    stopped = asyncio.Event()
    with step(f"load {', '.join(models)}"):
        served = await CloudModels.open(list(dict.fromkeys(models)), fetch, threads=threads)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        wanted = Endpoints(url=addresses[0], grpc=addresses[1] if len(addresses) > 1 else "")
        async with open_endpoints(
            served, wanted, max_request_bytes=MAX_REQUEST_BYTES, api_key=key, local_only=local_only, limits=limits
        ) as endpoints:
            titles = ", ".join(f"{name} {served.version(name)}" for name in served.models())
            click.echo(f"cloud tier ready at {endpoints} ({titles})")  # click flushes
            await stopped.wait()
    finally:
        await served.close()


def _sealed_for_others(manifest: Manifest) -> str:
    classes = ", ".join(key.device_class for key in manifest.sealed.keys) if manifest.sealed else ""
    return f"{manifest.name} {manifest.version} is sealed for {classes}, and no such class key was given"


def _fetcher(url: str, root: Path, target: str, folder: Path, class_keys: tuple[Path, ...]) -> FetchBundle:
    """A function that downloads the newest bundle of a model and verifies it from `root` on."""
    with needs_extra("cloud"):
        from edgekit.bundle.compat import seal_mismatches
        from edgekit.registry import RegistryReader
        from edgekit.sealing.keyring import Keyring
        from edgekit.sealing.opening import use_keyring
        from edgekit.storage.stores import open_store
    keyring = Keyring(class_keys)
    use_keyring(keyring)
    try:
        trusted = root.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"the trusted root cannot be read: {error}",
            advice="Give --root FILE; `edgekit registry init` wrote it beside the keys.",
        ) from error
    reader = RegistryReader(open_store(url), trusted, folder / "metadata")
    reader.refresh()

    def fetch(name: str) -> tuple[Manifest, Path]:
        release = reader.resolve(name, target)
        if seal_mismatches(release.manifest, keyring.ids):
            raise RefusedError(
                _sealed_for_others(release.manifest), advice="Give its private key with --class-key FILE."
            )
        reader.download(release.manifest, folder / name)
        return release.manifest, folder / name

    return fetch


_MAKE_KEY = "Make one: (umask 077; python3 -c 'import secrets; print(secrets.token_urlsafe(24))' > {file})."


def read_api_key(path: Path) -> str:
    """The key in a file that only its owner may read.

    Raises:
        SettingsError: the file is missing, readable by others, or has no usable key; the advice says how to make one.
    """
    advice = _MAKE_KEY.format(file=path)
    try:
        mode = path.stat().st_mode
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise SettingsError(f"there is no API key file {path}", advice=advice) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"API key file {path} cannot be read: {error}", advice=advice) from error
    if mode & 0o077:
        raise SettingsError(f"API key file {path} can be read by others", advice=f"Run: chmod 600 {path}")
    if len(key) < MIN_KEY_LENGTH or any(c.isspace() or not c.isprintable() for c in key):
        raise SettingsError(
            f"API key file {path} must contain one word of at least {MIN_KEY_LENGTH} characters", advice=advice
        )
    return key
