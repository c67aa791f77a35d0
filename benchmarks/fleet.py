"""CPU and memory of the control side during a rollout: real broker, controller and agents.

The benchmark enrolls DEVICES devices and runs their agents in one process (`edgekit simulate`: disks in memory, no
inference). It rolls out two versions of a model of MODEL_BYTES to all devices, in one wave each. The first version is
installed on empty devices; the second one is an update.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks.results import Figure, publish
from edgekit.cli.main import edgekit
from edgekit.demo.processes import PIDS_NAME, Processes
from edgekit.rollout.values import Rollout, RolloutState
from edgekit.state import open_fleet_state
from tests.simulators.bundles import write_bundle

DEVICES = 200
MODEL_BYTES = 1024 * 1024
TARGET = "raspberry-pi-4"
IDLE_SECONDS = 20.0
ROLLOUT_SECONDS = 900.0
PARTS = ("broker", "controller", "devices")


def main() -> None:
    """Run the benchmark and write ``fleet.json``."""
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-fleet-") as name:
        folder = Path(name)
        processes = Processes(folder)
        try:
            _prepare(folder, processes)
            publish("fleet", _measure(folder, processes))
        finally:
            processes.stop_all()


def _prepare(folder: Path, processes: Processes) -> None:
    (folder / "edgekit.toml").write_text('fleet = "bench"\n')
    processes.run("edgekit registry init")
    for version in ("1.0.0", "1.1.0"):
        bundle = write_bundle(folder / "bundles", "digits", version, TARGET, os.urandom(MODEL_BYTES))
        processes.run(f"edgekit registry publish {bundle}")
    line = processes.start("broker", "edgekit broker run --port 0", ready="ready at")
    (folder / "edgekit.toml").write_text(f'fleet = "bench"\nbroker = "{line.split()[-1]}"\n')
    for number in range(1, DEVICES + 1):
        enroll = ["--config", str(folder / "edgekit.toml"), "device", "enroll", f"sim-{number}", "--target", TARGET]
        edgekit.main([*enroll, "-o", str(folder / "devices" / f"sim-{number}")], "edgekit", standalone_mode=False)
    processes.start("controller", "edgekit controller run", ready="ready")


def _measure(folder: Path, processes: Processes) -> list[Figure]:
    begun = time.monotonic()
    connected = f"{DEVICES} of {DEVICES} connected"
    processes.start("devices", f"edgekit simulate {DEVICES}", ready=connected, timeout_seconds=300)
    figures = [Figure("all devices connected", time.monotonic() - begun, "s", note=f"{DEVICES} devices")]
    pids = json.loads((folder / PIDS_NAME).read_text())
    before = _cpu(pids)
    time.sleep(IDLE_SECONDS)
    for part, seconds in _cpu(pids).items():
        spent = (seconds - before[part]) / IDLE_SECONDS
        figures.append(Figure(f"{part}, idle", spent * 1e3, "ms CPU/s", note=f"heartbeats of {DEVICES} devices"))
    for version, label in (("1.0.0", "first install"), ("1.1.0", "update")):
        before, begun = _cpu(pids), time.monotonic()
        rollout = _roll_out(folder, processes, version)
        wall, after = time.monotonic() - begun, _cpu(pids)
        counts = ", ".join(f"{count} {state.lower()}" for state, count in rollout.counts().items() if count)
        note = f"{DEVICES} devices, {MODEL_BYTES >> 20} MiB, one wave: {counts}"
        figures.append(Figure(f"rollout, {label}", wall, "s", note=note))
        for part in PARTS:
            spent = (after[part] - before[part]) / DEVICES
            figures.append(Figure(f"{part}, {label}", spent, "CPU s/device-update"))
    for part in ("broker", "controller"):
        figures.append(Figure(f"{part}, peak memory", _peak_mib(pids[part]), "MiB", note="of all its processes"))
    return figures


def _roll_out(folder: Path, processes: Processes, version: str) -> Rollout:
    processes.run(f"edgekit rollout start digits {version} --waves 100% --device-deadline {ROLLOUT_SECONDS}")
    state = open_fleet_state(f"sqlite:///{folder / 'edgekit.db'}", "bench")
    try:
        deadline = time.monotonic() + ROLLOUT_SECONDS
        while True:
            (*_, rollout) = state.rollouts.all()
            if rollout.state is RolloutState.FINISHED:
                return rollout
            if rollout.state is not RolloutState.RUNNING or time.monotonic() > deadline:
                raise click.ClickException(f"rollout of {version} is {rollout.state.value}: {rollout.reason}")
            time.sleep(0.5)
    finally:
        state.close()


# --- /proc


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    """CPU seconds of each part since its start, user and system."""
    ticks = os.sysconf("SC_CLK_TCK")
    spent = {}
    for part, pid in pids.items():
        fields = [_text(f"/proc/{one}/stat").rpartition(")")[2].split() for one in _family(pid)]
        spent[part] = sum(int(user) + int(system) for *_, user, system in (f[:13] for f in fields)) / ticks
    return spent


def _peak_mib(pid: int) -> float:
    lines = [line for one in _family(pid) for line in _text(f"/proc/{one}/status").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _family(pid: int) -> Iterator[int]:
    """The process and all its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in _text(f"{task}/children").split():
            yield from _family(int(child))


def _text(path: str) -> str:
    return Path(path).read_text()
