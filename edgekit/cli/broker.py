"""`edgekit broker`: runs a private MQTT broker on this machine."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from edgekit.cli.common.console import control_settings, ignore_hangup, note
from edgekit.cli.common.numbers import Whole
from edgekit.errors import TransportError
from edgekit.mqtt.address import parse_url
from edgekit.mqtt.broker import GET_MOSQUITTO, KINDS, start_broker


@click.group()
def broker() -> None:
    """Run a private MQTT broker on this machine.

    \b
    Example:
      edgekit broker run
    """


@broker.command()
@click.option("--host", help="A loopback address [default: the host of the setting `broker`].")
@click.option("--port", type=Whole(0, 65535), help="0 takes any free port [default: the port of the setting `broker`].")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("broker"),
    show_default=True,
    help="Folder of mosquitto's configuration, log and retained messages.",
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="auto",
    show_default=True,
    help="auto: mosquitto where it is installed, else the embedded amqtt.",
)
def run(host: str | None, port: int | None, folder: Path, kind: str) -> None:
    """Run until interrupted; prints one line with the URL when it accepts connections.

    It listens on loopback only, because it does not authenticate clients.

    \b
    Examples:
      edgekit broker run
      edgekit broker run --port 0 --folder /tmp/broker
    """
    address = parse_url(control_settings().broker)
    asyncio.run(_run(host or address.host, address.port if port is None else port, folder, kind))


async def _run(host: str, port: int, folder: Path, kind: str) -> None:
    stopped = asyncio.Event()
    ignore_hangup()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with await start_broker(host, port, folder, kind=kind) as running:
        if running.kind == "amqtt":
            note(f"amqtt forgets all messages at a restart and serves one controller. {GET_MOSQUITTO} to avoid both.")
        click.echo(f"broker ({running.title}) ready at {running.url}")  # click flushes
        stop = asyncio.create_task(stopped.wait())
        end = asyncio.create_task(running.wait_ended())
        try:
            await asyncio.wait((stop, end), return_when=asyncio.FIRST_COMPLETED)
            if not stopped.is_set():
                raise TransportError(end.result())
        finally:
            stop.cancel()
            end.cancel()
