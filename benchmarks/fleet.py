"""CPU, memory and time of a rollout to a whole fleet: real mosquitto, controller and agents.

For each size the benchmark enrolls that many devices, runs their agents in two processes (`edgekit simulate`: disks in
memory, no inference), one for each core, and rolls out a bundle of MODEL_BYTES in five waves. With KILLED_AT devices it
then rolls out a second bundle, during which broker and controller are killed once and started again. Afterwards it
restarts the broker once more and counts its messages. With the largest size, telemetry is sent at once to the
controller and to a bare paho subscriber.

    python -m benchmarks fleet               all sizes
    python -m benchmarks fleet -- 100 300    these; a second run goes on after the sizes that the first one has measured
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec

from benchmarks.fleet_parts import broker_counts, count_lost, device_names, group_sizes, telemetry_cpu
from benchmarks.processes import cpu_of, peak_mib_of, pids_of
from benchmarks.results import Figure, publish
from edgekit.cli.common.numbers import Whole
from edgekit.cli.main import edgekit
from edgekit.demo.processes import Processes
from edgekit.rollout.values import Rollout, RolloutState
from edgekit.state import FleetState, open_fleet_state
from tests.simulators.bundles import write_bundle
from tests.simulators.mosquitto import free_port, running_mosquitto

SIZES = (100, 1000, 3000)
TIMED_FROM = 1000  # a rollout to fewer devices takes less processor time than the steps of its waves take anyway
KILLED_AT = 1000
VERSIONS = ("1.0.0", "1.1.0")  # the second one is rolled out with kills
MODEL_BYTES = 2 * 1024 * 1024
WAVES = "1%,10%,25%,50%,100%"
PROBATION_SECONDS = 5
TARGET = "raspberry-pi-4"
# Twice the default of the budget: a broadcast has its pace from it.
SETTINGS = 'fleet = "bench"\nbroker = "{broker}"\napi = ""\nbroker_budget_bytes = 33_554_432\n'
IDLE_SECONDS = 20.0
ROLLOUT_SECONDS = 3600.0
KEPT = Path(".bench") / "fleet"
PARTS = ("broker", "controller", "devices")


class Site:
    """A fleet of one size in a folder of its own."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.folder, self.devices, self.port = folder, devices, free_port()
        self.processes = Processes(folder)
        self.broker_pid = 0
        self._ended_cpu = dict.fromkeys(PARTS, 0.0)
        self._broker = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """URL of the broker."""
        return f"mqtt://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[FleetState]:
        """Prepare the registry, enroll the devices, and run broker, controller and devices."""
        (self.folder / "edgekit.toml").write_text(SETTINGS.format(broker=self.url))
        self.processes.run("edgekit registry init")
        for version in VERSIONS:
            bundle = write_bundle(self.folder / "bundles", "digits", version, TARGET, os.urandom(MODEL_BYTES))
            self.processes.run(f"edgekit registry publish {bundle}")
        self._enroll()
        state = open_fleet_state(f"sqlite:///{self.folder / 'edgekit.db'}", "bench")
        try:
            self.start_broker()
            self.start_controller()
            for prefix, count in group_sizes(self.devices).items():
                command = f"edgekit simulate {count} --prefix {prefix}"
                self.processes.start(prefix, command, ready=f"{count} of {count} connected", timeout_seconds=1800)
            yield state
        finally:
            self.processes.stop_all()
            self._broker.close()
            state.close()

    def start_broker(self) -> None:
        """Start mosquitto on the site's port; it publishes its counters each second."""
        config = f"listener {self.port} 127.0.0.1\nallow_anonymous true\nsys_interval 1\nset_tcp_nodelay true\n"
        limits = "max_queued_messages 10000\nmax_inflight_messages 256\n"
        self.broker_pid = self._broker.enter_context(running_mosquitto(self.folder, config + limits, self.port)).pid

    def start_controller(self) -> None:
        """Start the controller."""
        self.processes.start("controller", "edgekit controller run", ready=" ready, broker ")

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each part since its first start, user and system."""
        pids = pids_of(self.folder)
        parts = {"broker": [self.broker_pid], "controller": [pids["controller"]]}
        parts["devices"] = [pids[prefix] for prefix in group_sizes(self.devices)]
        return {part: self._ended_cpu[part] + sum(map(cpu_of, parts[part])) for part in PARTS}

    def kill(self, part: str) -> None:
        """Kill the broker or the controller, and start it again."""
        pid = self.broker_pid if part == "broker" else pids_of(self.folder)["controller"]
        self._ended_cpu[part] += cpu_of(pid)
        os.kill(pid, signal.SIGKILL)
        if part == "broker":
            self._broker.close()
            self.start_broker()
        else:
            self.processes.stop("controller")  # takes it off the list
            self.start_controller()

    def _enroll(self) -> None:
        options = ["--config", str(self.folder / "edgekit.toml"), "device", "enroll"]
        log = contextlib.ExitStack()
        with log, (self.folder / "enroll.log").open("w") as file:
            log.enter_context(contextlib.redirect_stdout(file))
            log.enter_context(contextlib.redirect_stderr(file))
            for device in device_names(self.devices):
                folder = self.folder / "devices" / device
                words = [*options, device, "--target", TARGET, "-o", str(folder)]
                edgekit.main(words, "edgekit", standalone_mode=False)
                with (folder / "agent.toml").open("a") as settings:
                    settings.write(f"probation_seconds = {PROBATION_SECONDS}\n")


def main(arguments: Sequence[str] = ()) -> None:
    """Run the benchmark for all sizes and write ``fleet.json``; for those in `arguments`, a file with their names."""
    _command.main(list(arguments), "python -m benchmarks fleet --", standalone_mode=False)


@click.command()
@click.argument("sizes", nargs=-1, type=Whole(min=1))
@click.option("--again", is_flag=True, help="Measure every size, also those that this commit has measured.")
def _command(sizes: tuple[int, ...], again: bool) -> None:
    """Measure fleets of these SIZES (default: 100, 1000 and 3000 devices).

    What was measured for a size is kept under .bench/fleet/, so that a run that ended early goes on with the next one.
    """
    chosen = sizes or SIZES
    killed_at = KILLED_AT if KILLED_AT in chosen else max(chosen)
    figures: list[Figure] = []
    per_device: dict[int, float] = {}
    for devices in chosen:
        kept = KEPT / f"{_commit()}-{devices}-{killed_at}-{max(chosen)}.json"
        if again or not kept.exists():
            found = _one_size(devices, kill=devices == killed_at, telemetry=devices == max(chosen))
            KEPT.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(msgspec.json.encode(found))
        read = msgspec.json.decode(kept.read_bytes(), type=_OneSize)
        figures += read.figures
        per_device[devices] = read.controller_seconds
    if len(per_device) > 1:
        few, many = min(per_device), max(per_device)
        note = f"{per_device[many] * 1e3:.1f} ms over {per_device[few] * 1e3:.1f} ms for each device and update"
        ratio = per_device[many] / per_device[few]
        figures.append(Figure(f"controller CPU a device, {many} over {few} devices", ratio, "times", 1.2, note=note))
    publish("-".join(["fleet", *map(str, sizes)]), figures)


class _OneSize(msgspec.Struct):
    """The figures of one size, and the controller's CPU seconds for each device and update."""

    figures: list[Figure]
    controller_seconds: float


def _one_size(devices: int, *, kill: bool, telemetry: bool) -> _OneSize:
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-fleet-") as name:
        site = Site(Path(name), devices)
        with site.running() as state:
            figures, seconds = _measure(site, state)
            if kill:
                figures.append(_killed(site, state))
                figures += broker_counts(site.url, site.kill, devices)
            if telemetry:
                figures.append(telemetry_cpu(site.folder, site.url, state, devices, site.processes))
            return _OneSize(figures, seconds)


def _commit() -> str:
    """The commit that is measured; with changes that are not committed, none that was measured before."""
    words = ["git", "describe", "--always", f"--dirty=-changed-{time.time_ns()}"]
    return subprocess.run(words, cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout.strip()


def _measure(site: Site, state: FleetState) -> tuple[list[Figure], float]:
    """Figures of one rollout, and the controller's CPU seconds for each device."""
    label = f"{site.devices} devices"
    before = site.cpu()
    time.sleep(IDLE_SECONDS)
    idle = {part: (seconds - before[part]) / IDLE_SECONDS * 1e3 for part, seconds in site.cpu().items()}
    figures = [Figure(f"{label}: {part}, idle", spent, "ms CPU/s") for part, spent in idle.items()]
    before, begun = site.cpu(), time.monotonic()
    rollout = _roll_out(site, state, VERSIONS[0], kill=False)
    wall = time.monotonic() - begun
    spent = {part: seconds - before[part] for part, seconds in site.cpu().items()}
    figures.append(Figure(f"{label}: devices lost", count_lost(rollout, state), "devices", 0.0, note=_counts(rollout)))
    waits = PROBATION_SECONDS * len(rollout.plan.waves)
    note = f"{wall:.0f} s less {waits} s of probation, over half of {sum(spent.values()):.0f} CPU s"
    busy = (wall - waits) / (sum(spent.values()) / 2)
    reach = 1.3 if site.devices >= TIMED_FROM else None
    figures.append(Figure(f"{label}: time over CPU time of two cores", busy, "times", reach, note=note))
    figures += [Figure(f"{label}: {part}", spent[part] / site.devices * 1e3, "ms CPU/device") for part in PARTS]
    ratio = spent["controller"] / max(spent["broker"], 0.01)
    figures.append(Figure(f"{label}: controller CPU over broker CPU", ratio, "times", 3.0, note="during the rollout"))
    peak = peak_mib_of(pids_of(site.folder)["controller"])
    figures.append(Figure(f"{label}: controller, peak memory", peak, "MiB", 200.0))
    print(f"{label}: {wall:.0f} s, {spent}", file=sys.stderr)
    return figures, spent["controller"] / site.devices


def _killed(site: Site, state: FleetState) -> Figure:
    """Devices that a rollout lost, during which broker and controller were killed once."""
    begun = time.monotonic()
    rollout = _roll_out(site, state, VERSIONS[1], kill=True)
    note = f"{_counts(rollout)}; {time.monotonic() - begun:.0f} s"
    lost = count_lost(rollout, state)
    return Figure(f"{site.devices} devices: lost, broker and controller killed", lost, "devices", 0.0, note=note)


def _counts(rollout: Rollout) -> str:
    return ", ".join(f"{count} {name.lower()}" for name, count in rollout.counts().items() if count)


def _roll_out(site: Site, state: FleetState, version: str, *, kill: bool) -> Rollout:
    options = f"--waves {WAVES} --device-deadline {ROLLOUT_SECONDS}"
    site.processes.run(f"edgekit rollout start digits {version} {options}")
    to_kill = {"broker": 0.2, "controller": 0.4} if kill else {}
    deadline = time.monotonic() + ROLLOUT_SECONDS
    while True:
        found = state.rollouts.documents(limit=1)[0]  # the newest
        if found.state == RolloutState.FINISHED.value:
            return state.rollouts.all()[-1]
        if found.state != RolloutState.RUNNING.value or time.monotonic() > deadline:
            raise click.ClickException(f"the rollout is {found.state}: {found.reason}; {found.counts}")
        for part, share in list(to_kill.items()):
            if found.counts["SUCCEEDED"] >= share * site.devices:
                site.kill(part)
                del to_kill[part]
        time.sleep(0.5)
