"""`edgekit cloud`: runs the cloud tier."""

from __future__ import annotations

import asyncio
import re
import secrets
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.common.cloud_entrance import Entrance, open_entrance
from edgekit.cli.common.cloud_files import read_api_key
from edgekit.cli.common.console import control_settings, ignore_hangup, needs_extra, note, step
from edgekit.cli.common.cpus import usable_cpus
from edgekit.cli.common.numbers import SHARE, Whole
from edgekit.cli.common.scratch import scratch_folder
from edgekit.errors import SettingsError
from edgekit.serving.api.keys import digest_of
from edgekit.serving.http.addresses import parse_networks
from edgekit.serving.http.limits import Limits
from edgekit.serving.models.cloud_options import CloudModelOptions, check_canaries
from edgekit.settings.groups import MIB, settings_group

if TYPE_CHECKING:
    from edgekit.serving.cloud import CloudModels
    from edgekit.serving.cloud.follower import Bundles, Follower
    from edgekit.serving.endpoints import Endpoints
    from edgekit.settings import ControlSettings

__all__ = ["cloud", "read_api_key"]

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
LOOK_SECONDS = 2.0  # between two looks at files that may change


@click.group()
def cloud() -> None:
    """Run the cloud tier, which answers the requests that devices send on."""


@cloud.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@click.option("--all", "every", is_flag=True, help="Serve every model that has a bundle for the target, new ones too.")
@click.option("--channel", help="Serve the newest version of this channel [default: the newest of all].")
@click.option("--canary-channel", help="Let the newest version of this channel answer a share of the requests.")
@click.option("--canary-share", type=SHARE, help="That share, 0 to 1.")
@click.option("--versions", type=Whole(1, 32), help="Newest versions that are served side by side [default: 1].")
@click.option("--registry", "url", metavar="URL", help="file://, s3://, gs:// or az:// store.")
@click.option(
    "--root", type=click.Path(path_type=Path, dir_okay=False), help="Trusted TUF root [default: root.json of the keys]."
)
@click.option("--host", help="Address to listen on [default: 127.0.0.1].")
@click.option("--port", type=Whole(0, 65535), help="0 takes any free port [default: 8700].")
@click.option("--grpc-port", type=Whole(0, 65535), help="Serve gRPC on this port too; needs edgekit[grpc].")
@click.option("--health-port", type=Whole(0, 65535), help="Serve health and metrics here, without TLS and key.")
@click.option("--api-key-file", type=click.Path(path_type=Path, dir_okay=False), help="File that holds the API keys.")
@click.option("--tls-certificate", type=click.Path(path_type=Path, dir_okay=False), help="PEM file; serve TLS only.")
@click.option("--tls-key", type=click.Path(path_type=Path, dir_okay=False), help="PEM file of its private key.")
@click.option(
    "--client-ca", type=click.Path(path_type=Path, dir_okay=False), help="Clients need a certificate of this authority."
)
@click.option("--access-log", metavar="FILE", help="Append a JSON line for each request; - is stdout.")
@click.option(
    "--class-key",
    "class_keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private key of a device class, which opens sealed bundles; may be repeated.",
)
@click.option("--target", default="server", show_default=True, help="Target profile whose bundles are served.")
@click.option("--threads", type=Whole(1, 1024), help="Threads of each model's runtime [default: one per CPU].")
def serve(models: tuple[str, ...], every: bool, root: Path | None, target: str, **flags: Any) -> None:
    """Serve each MODEL over Open Inference Protocol v2 until interrupted.

    Bundles come from the registry and are verified. When every model has passed its self-test, one line with the URL
    is printed. New versions are served when they are published or promoted to the channel, without a restart. An
    address that is not loopback needs API keys or client certificates.

    \b
    Examples:
      edgekit cloud serve digits-cloud
      edgekit cloud serve --all --channel stable
      edgekit cloud serve digits-cloud --channel stable --canary-channel canary --canary-share 0.1
      edgekit cloud serve digits-cloud --host 0.0.0.0 --api-key-file cloud.key
      edgekit cloud serve digits-cloud --tls-certificate tier.pem --tls-key tier.key --client-ca devices.pem
      edgekit cloud serve digits-cloud --grpc-port 8701
      edgekit cloud serve digits-cloud --class-key cloud-class.key
    """
    if bool(models) == every:
        raise click.UsageError("Missing argument 'MODEL...'. Name models, or give --all.")
    settings = _settings(flags)
    own = settings.cloud_models
    has_share = settings.cloud_canary_share or any(one.canary_share for one in own.values())
    if flags["canary_channel"] and flags["canary_share"] is None and not has_share:
        raise click.UsageError("--canary-channel: given, but the share is 0. Give --canary-share.")
    check_canaries(settings_group(CloudModelOptions, settings, prefix="cloud_"), own)
    entrance = open_entrance(settings, note)
    ignore_hangup()
    signal.signal(signal.SIGTERM, _stop_before_serving)
    with scratch_folder("edgekit-cloud-") as folder:
        bundles = _bundles(settings, root or settings.keys / "root.json", folder)
        asyncio.run(_serve(settings, bundles, None if every else models, target, entrance))


@cloud.command()
@click.argument("name")
def key(name: str) -> None:
    """Make an API key for one device, team or site.

    The key is printed on stdout. The table for the key file, which holds the key's digest only, is printed on stderr.

    \b
    Example:
      edgekit cloud key site-north > site-north.key 2>> cloud-keys.toml
    """
    if not NAME.fullmatch(name):
        raise click.UsageError(f"the name is {name!r}, expected letters, digits, - and _, at most 64.")
    made = secrets.token_urlsafe(24)
    note(f'[keys.{name}]\nsha256 = ["{digest_of(made)}"]')
    click.echo(made)


def _settings(flags: dict[str, Any]) -> ControlSettings:
    """The settings, with the flags of the command."""
    names = {"url": "registry", "class_keys": "cloud_class_keys"}
    named = {names.get(flag, f"cloud_{flag}"): value for flag, value in flags.items()}
    named["cloud_class_keys"] = named["cloud_class_keys"] or None
    return control_settings(**named)


async def _serve(
    settings: ControlSettings,
    bundles: Bundles,
    names: tuple[str, ...] | None,
    target: str,
    entrance: Entrance,
) -> None:
    with needs_extra("cloud"):
        from edgekit.serving.cloud import CloudModels
        from edgekit.serving.endpoints import open_endpoints
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    served = CloudModels()
    follower = _follower(settings, served, bundles, names, target)
    try:
        with step(f"load {', '.join(names) if names else 'every model'}"):
            await follower.start()
        if unknown := sorted(set(settings.cloud_models) - set(served.models())):
            note(f"[cloud_models]: {', '.join(unknown)}: this cloud tier serves no such model")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        loop.add_signal_handler(signal.SIGHUP, _hang_up, entrance, follower)
        async with open_endpoints(
            served,
            _addresses(settings),
            max_request_bytes=settings.cloud_max_request_mib * MIB,
            keys=entrance.keys,
            local_only=entrance.is_local,
            limits=_limits(settings),
            tls=entrance.tls,
            access_log=entrance.log.write if entrance.log is not None else None,
        ) as endpoints:
            titles = ", ".join(f"{name} {served.version(name)}" for name in served.models())
            click.echo(f"cloud tier ready at {endpoints} ({titles})")  # click flushes
            await _until(stopped, follower.follow(settings.cloud_refresh_seconds), _look(entrance))
    finally:
        await served.close()


async def _until(stopped: asyncio.Event, *works: Coroutine[Any, Any, None]) -> None:
    """Run `works` until `stopped` is set; their errors, which are bugs, end the command."""
    tasks = [asyncio.ensure_future(work) for work in (stopped.wait(), *works)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _stop_before_serving(number: int, frame: object) -> None:
    """End the command with status 0, as it ends when it serves; scratch files are removed on the way."""
    note("stopped before a model was served")
    raise SystemExit(0)


def _hang_up(entrance: Entrance, follower: Follower) -> None:
    entrance.hang_up(note)
    follower.wake()


async def _look(entrance: Entrance) -> None:
    """Read keys and certificate again when their files change."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        entrance.look(note)


def _addresses(settings: ControlSettings) -> Endpoints:
    from edgekit.serving.endpoints import Endpoints

    host = f"[{settings.cloud_host}]" if ":" in settings.cloud_host else settings.cloud_host
    grpc = "" if settings.cloud_grpc_port is None else f"{host}:{settings.cloud_grpc_port}"
    health = "" if settings.cloud_health_port is None else f"{host}:{settings.cloud_health_port}"
    return Endpoints(url=f"{host}:{settings.cloud_port}", grpc=grpc, health=health)


def _limits(settings: ControlSettings) -> Limits:
    return Limits(
        connections=settings.cloud_max_connections,
        peer_connections=settings.cloud_max_connections_per_address,
        trusted_proxies=parse_networks(settings.cloud_trusted_proxies),
        drain_seconds=settings.cloud_drain_seconds,
    )


def _follower(
    settings: ControlSettings, served: CloudModels, bundles: Bundles, names: tuple[str, ...] | None, target: str
) -> Follower:
    from edgekit.runtimes.providers import Acceleration
    from edgekit.serving.cloud.follower import Follower
    from edgekit.serving.worker.loader import Loader

    defaults = settings_group(CloudModelOptions, settings, prefix="cloud_")
    own = settings.cloud_models

    def options(name: str) -> CloudModelOptions:
        return own[name].over(defaults) if name in own else defaults

    accelerated = settings_group(Acceleration, settings, prefix="cloud_", required=settings.cloud_require_providers)
    load = Loader(options, threads=settings.cloud_threads or usable_cpus(), acceleration=accelerated)
    return Follower(served, bundles, load, names=names, target=target, options=options, tell=note, clock=time.monotonic)


def _bundles(settings: ControlSettings, root: Path, folder: Path) -> Bundles:
    """The registry's bundles, verified from `root` on."""
    with needs_extra("cloud"):
        from edgekit.registry import RegistryReader
        from edgekit.sealing.keyring import Keyring
        from edgekit.sealing.opening import use_keyring
        from edgekit.serving.cloud.bundles import RegistryBundles
        from edgekit.storage.stores import open_store
    keyring = Keyring(settings.cloud_class_keys)
    use_keyring(keyring)
    try:
        trusted = root.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"the trusted root cannot be read: {error}",
            advice="Give --root FILE; `edgekit registry init` wrote it beside the keys.",
        ) from error
    reader = RegistryReader(open_store(settings.registry), trusted, folder / "metadata")
    return RegistryBundles(reader, folder, keyring.ids)
