"""`edgekit controller`: the control side as a process."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import control_settings, needs_extra, note
from edgekit.cli.common.fleet import read_root
from edgekit.cli.common.passphrase import needed_passphrase, passphrase_option
from edgekit.errors import TransportError
from edgekit.settings import ControlSettings, tls_files

if TYPE_CHECKING:
    from edgekit.mqtt.transport import MqttTransport
    from edgekit.trust.repository import Repository

SAY_AWAY_SECONDS = 2.0


@click.group()
def controller() -> None:
    """Run the fleet controller.

    \b
    Example:
      edgekit controller run
    """


@controller.command()
@click.option("--broker", metavar="URL", help="MQTT broker.")
@passphrase_option
def run(broker: str | None, passphrase_file: Path | None) -> None:
    """Serve the fleet until interrupted: rollouts, blocks and metadata for devices, and what devices report.

    \b
    Example:
      edgekit controller run --broker mqtt://127.0.0.1:1883
    """
    settings = control_settings(broker=broker)
    with needs_extra("controller"):
        from edgekit.trust.keys import private_keys
    passphrase = needed_passphrase(passphrase_file, private_keys(settings.keys))
    with TemporaryDirectory(prefix="edgekit-controller-") as cache:
        asyncio.run(_run(settings, passphrase, Path(cache)))


async def _run(settings: ControlSettings, passphrase: str | None, cache: Path) -> None:
    with needs_extra("controller"):
        from edgekit.clock import SystemClock
        from edgekit.controller import Controller, ControllerOptions
        from edgekit.controller.blob_urls import blob_urls
        from edgekit.mqtt.transport import MqttTransport
        from edgekit.registry import RegistryReader
        from edgekit.state import open_fleet_state
        from edgekit.storage.stores import open_store
        from edgekit.trust.repository import Repository
    store = open_store(settings.registry)
    tls = tls_files(settings)
    transport = MqttTransport(
        settings.broker,
        client_id=f"controller-{settings.fleet}-{secrets.token_hex(4)}",
        username="controller",
        ca=tls.ca,
        certificate=tls.certificate,
        key=tls.key,
    )
    repository = Repository(store, settings.keys, passphrase)
    director = repository.director()
    reader = RegistryReader(store, read_root(settings), cache)
    state = open_fleet_state(settings.database, settings.fleet)
    try:
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
            ),
            freshen=_freshener(settings, repository),
            blob_urls=blob_urls(settings.blob_urls, store),
        )
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        said = asyncio.get_running_loop().create_task(_say_ready(settings, transport))
        try:
            await service.run(stop)
        finally:
            said.cancel()
            await asyncio.gather(said, return_exceptions=True)
    finally:
        state.close()


async def _say_ready(settings: ControlSettings, transport: MqttTransport) -> None:
    """One line on stdout once the broker is there; on stderr whenever it is away, and why."""
    said = ""
    while True:
        try:
            await transport.wait_connected(SAY_AWAY_SECONDS)
            break
        except TransportError as error:
            if str(error) != said:
                note(f"{error}; trying again until it is there")
                said = str(error)
    click.echo(f"controller for fleet {settings.fleet} ready, broker {transport.address}")
    transport.on_connection(lambda there: note(f"broker {transport.address} is {'back' if there else 'away; waiting'}"))


def _freshener(settings: ControlSettings, repository: Repository) -> Callable[[], object] | None:
    """Signs the registry's timestamp anew when it is due, where the keys for it are here."""
    missing = repository.missing(("snapshot", "timestamp"))
    if missing:
        note(f"no {' and no '.join(missing)} key in {settings.keys}: the registry's timestamp is not renewed here")
        return None
    return repository.refresh_timestamp
