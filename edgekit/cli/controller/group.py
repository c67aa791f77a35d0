"""`edgekit controller run`: the fleet controller as a process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.bundle.targets import builtin_targets
from edgekit.cli.common.console import control_settings, ignore_hangup, needs_extra, note
from edgekit.cli.common.fleet import broker_of_devices, control_transport, read_root
from edgekit.cli.common.passphrase import needed_passphrase, passphrase_option
from edgekit.cli.common.scratch import scratch_folder
from edgekit.cli.controller.backup import backup, restore
from edgekit.cli.controller.token import token
from edgekit.cli.controller.web import check_api, serve_web
from edgekit.cli.controller.webhook import webhook
from edgekit.cli.device.folder import check_sample_key
from edgekit.errors import TransportError
from edgekit.settings import ControlSettings
from edgekit.settings.groups import MIB

if TYPE_CHECKING:
    from edgekit.controller import Controller
    from edgekit.controller.joins import JoinService
    from edgekit.controller.operations import Operations
    from edgekit.mqtt.transport import MqttTransport
    from edgekit.state import FleetState
    from edgekit.trust.repository import Repository

CONNECT_SECONDS = 2.0  # time without a connection after which the reason is printed


@click.group()
def controller() -> None:
    """Run the fleet controller, back it up, and give operators access to its API and pages.

    \b
    Examples:
      edgekit controller run
      edgekit controller token add ann --role operator
      edgekit controller backup -o edgekit-backup.tar
    """


controller.add_command(backup)
controller.add_command(restore)


@controller.command()
@click.option(
    "--broker", metavar="URL", help="MQTT broker, for example mqtt://127.0.0.1:1883 [default: broker of edgekit.toml]."
)
@passphrase_option
def run(broker: str | None, passphrase_file: Path | None) -> None:
    """Serve the fleet until interrupted: advance rollouts, send blocks and metadata, store reports of devices.

    \b
    Example:
      edgekit controller run --broker mqtt://127.0.0.1:1883
    """
    settings = control_settings(broker=broker)
    check_api(settings)
    with needs_extra("controller"):
        from edgekit.trust.keys import private_keys
    passphrase = needed_passphrase(passphrase_file, private_keys(settings.keys))
    with scratch_folder("edgekit-controller-") as cache:
        asyncio.run(_run(settings, passphrase, cache))


async def _run(settings: ControlSettings, passphrase: str | None, cache: Path) -> None:
    with needs_extra("controller"):
        from edgekit.clock import SystemClock
        from edgekit.controller import Controller, ControllerOptions
        from edgekit.controller.blob_urls import blob_urls
        from edgekit.controller.operations import Operations
        from edgekit.controller.posting import post
        from edgekit.registry import RegistryReader
        from edgekit.state import open_fleet_state
        from edgekit.storage.stores import open_store
        from edgekit.trust.repository import Repository
    store = open_store(settings.registry)
    transport = control_transport(settings)
    repository = Repository(store, settings.keys, passphrase)
    director = repository.director()
    reader = RegistryReader(store, read_root(settings), cache / "controller")
    offline_after = settings.offline_after_seconds
    author = f"controller@{socket.gethostname()}"
    state = open_fleet_state(settings.database, settings.fleet, offline_after_seconds=offline_after, author=author)
    with contextlib.closing(state):
        service = Controller(
            fleet=settings.fleet,
            transport=transport,
            state=state,
            store=store,
            reader=reader,
            director=director,
            clock=SystemClock(),
            options=ControllerOptions(
                tick_seconds=settings.tick_seconds,
                assignment_days=settings.assignment_days,
                broker_budget_bytes=settings.broker_budget_bytes,
                quarantine_clones=settings.quarantine_clones,
                telemetry_days=settings.telemetry_days,
                sample_quota_bytes=settings.sample_quota_mib * MIB,
                sample_days=settings.sample_days,
            ),
            renew_timestamp=_timestamp_renewer(settings, repository),
            blob_urls=blob_urls(settings.blob_urls, store),
            post=post,
            joins=_join_service(settings, transport, state, passphrase),
            load_director=repository.director,
        )
        operations = Operations(state, RegistryReader(store, read_root(settings), cache / "api"), SystemClock())
        await _serve(service, settings, transport, operations)


def _join_service(
    settings: ControlSettings, transport: MqttTransport, state: FleetState, passphrase: str | None
) -> JoinService | None:
    """The service that signs certificates; None where there is no authority in the key folder."""
    from edgekit.clock import SystemClock
    from edgekit.controller.joins import JoinService
    from edgekit.identity.authority import CERTIFICATE_FILE, KEY_FILE, Authority

    if not (settings.keys / CERTIFICATE_FILE).exists():
        return None
    if not (settings.keys / KEY_FILE).exists():
        note(f"there is no {KEY_FILE} in {settings.keys}: this controller signs no certificates")
        return None
    targets = builtin_targets()
    if settings.sample_key is not None:
        check_sample_key(settings.sample_key)
    return JoinService(
        fleet=settings.fleet,
        transport=transport,
        state=state,
        clock=SystemClock(),
        authority=Authority.load(settings.keys, passphrase),
        root=read_root(settings),
        days=settings.certificate_days,
        broker=broker_of_devices(settings),
        known_target=lambda name: name in targets and targets[name].agent,
        sample_key=b"" if settings.sample_key is None else settings.sample_key.read_bytes(),
    )


async def _serve(
    service: Controller, settings: ControlSettings, transport: MqttTransport, operations: Operations
) -> None:
    """Run the controller until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    ignore_hangup()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    loop = asyncio.get_running_loop()
    announcement = loop.create_task(_announce_connection(settings, transport))
    web = loop.create_task(serve_web(operations, settings, stop, service.values))
    try:
        await service.run(stop)
    finally:
        stop.set()
        announcement.cancel()
        await asyncio.gather(announcement, web, return_exceptions=True)


async def _announce_connection(settings: ControlSettings, transport: MqttTransport) -> None:
    """Print one line on stdout when the broker is reached; note on stderr whenever it cannot be reached, and why."""
    last_error = ""
    while True:
        try:
            await transport.wait_connected(CONNECT_SECONDS)
            break
        except TransportError as error:
            if str(error) != last_error:
                note(f"{error}; retrying")
                last_error = str(error)
    click.echo(f"controller for fleet {settings.fleet} ready, broker {transport.address}")
    transport.on_connection(
        lambda connected: note(f"broker {transport.address}: {'connected again' if connected else 'connection lost'}")
    )


def _timestamp_renewer(settings: ControlSettings, repository: Repository) -> Callable[[], object]:
    """The function that renews the registry's timestamp; one that only compares times if a key for it is not here."""
    missing = repository.missing(("snapshot", "timestamp"))
    if missing:
        note(f"no {' and no '.join(missing)} key in {settings.keys}: this controller does not renew the timestamp")
        return lambda: _note_time(repository)
    return repository.refresh_timestamp


def _note_time(repository: Repository) -> None:
    """Warn when the metadata was signed in the future, because devices refuse it."""
    from edgekit.trust.repository import MAX_AHEAD_SECONDS

    if (ahead := repository.seconds_ahead()) > MAX_AHEAD_SECONDS:
        note(
            f"the registry's metadata was signed {ahead / 3600:.1f} h later than this machine's clock shows: a clock "
            "was or is wrong. Devices refuse it until you run, where the keys are: edgekit registry renew"
        )


controller.add_command(token)
controller.add_command(webhook)
