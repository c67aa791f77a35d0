"""`edgekit simulate`: run many simulated devices against a real broker and controller."""

from __future__ import annotations

import asyncio
import functools
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import json_option, needs_extra, note, print_json, print_table
from edgekit.cli.common.numbers import SHARE, Seconds, Whole
from edgekit.errors import NotFoundError
from edgekit.settings import AgentSettings, load_settings

if TYPE_CHECKING:
    from device_agents.simulator import FleetProgress, SimulatedFleet

MAX_THREADS = 64
SHOW_SECONDS = 1.0


@click.command()
@click.argument("count", metavar="N", type=Whole(min=1))
@click.option(
    "--devices",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("devices"),
    show_default=True,
    help="Folder that holds the device folders of `edgekit device enroll`.",
)
@click.option("--prefix", default="sim", show_default=True, help="The devices' names are PREFIX-1 to PREFIX-N.")
@click.option("--broker", metavar="URL", help="Broker [default: the one in the devices' settings].")
@click.option("--fleet", help="Fleet [default: the one in the devices' settings].")
@click.option(
    "--until", "version", metavar="X.Y.Z", help="End when every device runs this version or failed to get it."
)
@click.option("--seconds", type=Seconds(0), help="End after this number of seconds.")
@click.option("--fail-share", type=SHARE, default=0.0, show_default=True, help="Share of self-tests that fail.")
@json_option
def simulate(
    count: int,
    devices: Path,
    prefix: str,
    broker: str | None,
    fleet: str | None,
    version: str | None,
    seconds: float | None,
    fail_share: float,
    as_json: bool,
) -> None:
    """Run N enrolled devices in this process, with real agents, updates and MQTT, but disks in memory and no models.

    \b
    Example:
      for i in 1 2 3; do edgekit device enroll sim-$i --target raspberry-pi-4; done
      edgekit simulate 3 --until 1.0.0
    """
    folders = [devices / f"{prefix}-{number}" for number in range(1, count + 1)]
    missing = [folder.name for folder in folders if not (folder / "agent.toml").is_file()]
    if missing:
        raise NotFoundError(
            f"{len(missing)} of {count} devices are not enrolled in {devices}: {', '.join(missing[:5])}",
            advice=f"Run: edgekit device enroll {missing[0]} --target TARGET -o {devices / missing[0]}",
        )
    flags = {"broker": broker, "fleet": fleet}
    settings = [load_settings(AgentSettings, file=folder / "agent.toml", flags=flags) for folder in folders]
    with needs_extra("agent"), tempfile.TemporaryDirectory(prefix="edgekit-simulate-") as cache:
        progress = asyncio.run(_run(settings, Path(cache), version, seconds, fail_share))
    if as_json:
        print_json(progress)
        return
    rows = [(name, "runs", devices) for name, devices in sorted(progress.versions.items())]
    rows += [(name, "last failure", devices) for name, devices in sorted(progress.failures.items())]
    print_table(("MODEL", "", "DEVICES"), rows)


async def _run(
    settings: list[AgentSettings], cache: Path, version: str | None, seconds: float | None, fail_share: float
) -> FleetProgress:
    from device_agents.simulator import versions_reached

    loop = asyncio.get_running_loop()
    # The metadata client of each device blocks a thread while it waits for the network.
    loop.set_default_executor(ThreadPoolExecutor(min(MAX_THREADS, len(settings) + 4)))
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    end = None if seconds is None else time.monotonic() + seconds

    def done(progress: FleetProgress) -> bool:
        reached = version is not None and versions_reached(progress, version)
        return reached or stopped.is_set() or (end is not None and time.monotonic() >= end)

    def show(progress: FleetProgress) -> None:
        versions = ", ".join(f"{devices} x {name}" for name, devices in sorted(progress.versions.items()))
        note(
            f"{progress.connected} of {progress.devices} connected, {progress.updating} updating; {versions or 'idle'}"
        )

    return await _fleet(settings, cache, fail_share).run(done=done, show=show, seconds=SHOW_SECONDS)


def _fleet(settings: list[AgentSettings], cache: Path, fail_share: float) -> SimulatedFleet:
    from device_agents.assembly.control import agent_options, make_transport, read_root
    from device_agents.control.link import presence_will
    from device_agents.simulator import SimulatedFleet
    from device_agents.storage.journal import Journal
    from edgekit.clock import SystemClock
    from edgekit.storage.disk import MemoryDisk
    from edgekit.trust.client import TrustClient
    from edgekit.trust.keys import load_signer

    fleet = SimulatedFleet()
    contents: dict[bytes, bytes] = {}  # devices install the same files
    for one in settings:
        disk = MemoryDisk(shared=contents)
        journal = Journal(disk)
        session = journal.begin_session()
        root, folder = read_root(one.root), cache / one.device
        fleet.add(
            agent_options(one),
            target=one.target,
            disk=disk,
            journal=journal,
            transport=make_transport(one, client_id=one.device, will=presence_will(one.fleet, one.device, session)),
            trust=functools.partial(TrustClient, folder, root),
            signer=load_signer(one.key),
            clock=SystemClock(),
            fail_share=fail_share,
        )
    return fleet
