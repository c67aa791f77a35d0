"""`edgekit broker`: runs a private MQTT broker on this machine."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from edgekit.cli.common.console import control_settings, ignore_hangup, note
from edgekit.cli.common.numbers import Whole
from edgekit.errors import DiskError, TransportError
from edgekit.mqtt.address import parse_url
from edgekit.mqtt.broker import GET_MOSQUITTO, KINDS, start_broker
from edgekit.mqtt.broker_files import (
    ACL_FILE,
    CLAIM_ACL_FILE,
    CONFIG_FILE,
    BrokerFiles,
    claim_acl,
    mosquitto_acl,
    mosquitto_fleet_config,
)


@click.group()
def broker() -> None:
    """Run a private MQTT broker on this machine, or write the configuration of a fleet's broker.

    \b
    Examples:
      edgekit broker run
      edgekit broker config -o broker
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


@broker.command()
@click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for mosquitto.conf and the ACL files.",
)
@click.option(
    "--folder", help="Folder of these files on the broker's machine.", default="/etc/mosquitto", show_default=True
)
@click.option("--certificates", help="Folder of ca.pem, server.pem and server.key there [default: FOLDER/certs].")
@click.option("--data", help="Folder of retained messages there.", default="/var/lib/mosquitto/", show_default=True)
@click.option("--address", default="", help="Address on which it listens [default: all].")
@click.option(
    "--port", type=Whole(1, 65535), default=8883, show_default=True, help="Port for clients with a certificate."
)
@click.option(
    "--claim-port", type=Whole(0, 65535), default=0, show_default=True, help="Port for `edgekit-agent join`; 0: none."
)
@click.option("--no-revocations", is_flag=True, help="There is no list of revoked certificates (revoked.crl).")
def config(
    output: Path,
    folder: str,
    certificates: str | None,
    data: str,
    address: str,
    port: int,
    claim_port: int,
    no_revocations: bool,
) -> None:
    """Write the configuration of a fleet's mosquitto: mutual TLS, and rights by topic for each device.

    \b
    Example:
      edgekit broker config -o broker --claim-port 8884
    """
    files = BrokerFiles(
        folder=folder,
        certificates=certificates or f"{folder}/certs",
        data=data,
        address=address,
        port=port,
        claim_port=claim_port,
        revocations=not no_revocations,
    )
    texts = {CONFIG_FILE: mosquitto_fleet_config(files), ACL_FILE: mosquitto_acl(), CLAIM_ACL_FILE: claim_acl()}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (output / name).write_text(text)
    except OSError as error:
        raise DiskError(f"{output} cannot be written: {error.strerror or error}") from error
    note(f"{output} has {', '.join(texts)}; they go to {folder} on the broker's machine")


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
