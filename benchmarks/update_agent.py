"""Memory cost of an update: the resident memory of a real agent from the assignment to the end of STAGING."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import Figure
from edgekit.cli.main import edgekit
from edgekit.demo.processes import Processes
from tests.simulators.bundles import write_bundle
from tests.simulators.weights import int8_weights, onnx_file, retrained

ARTIFACT_BYTES = 50 * 1000 * 1000
LAYERS = 10
TARGET = "raspberry-pi-4"
IDLE_SECONDS = 3.0
STAGED = "STAGING -> TESTING"
MIB = 1024**2


def figures(folder: Path) -> list[Figure]:
    """Measure an update by whole blocks, then one by a delta.

    The artifact holds only weights. No runtime loads it, so the update ends in TESTING with a refusal.
    """
    home = folder / "agent"
    home.mkdir()
    (home / "edgekit.toml").write_text('fleet = "bench"\n')
    processes = Processes(home)
    try:
        line = processes.start("broker", "edgekit broker run --port 0 --kind mosquitto", ready="ready at")
        (home / "edgekit.toml").write_text(f'fleet = "bench"\nbroker = "{line.split()[-1]}"\n')
        processes.run("edgekit registry init")
        enroll = ["--config", str(home / "edgekit.toml"), "device", "enroll", "d1", "--target", TARGET]
        edgekit.main([*enroll, "-o", str(home / "d1")], "edgekit", standalone_mode=False)
        weights = int8_weights(1, *[ARTIFACT_BYTES // LAYERS] * LAYERS)
        bundle = write_bundle(home / "bundles", "digits", "1.0.0", TARGET, onnx_file(weights))
        processes.run(f"edgekit registry publish {bundle}")
        processes.start("controller", "edgekit controller run", ready="ready")
        results = [_update(home, processes, "1.0.0", "whole blocks")]
        # The agent refused the bundle, because no runtime loads it. Copy it to the active slot: the base of the delta.
        slot = home / "d1" / "state" / "models" / "digits" / "a"
        slot.mkdir(parents=True, exist_ok=True)
        for file in bundle.iterdir():
            (slot / file.name).write_bytes(file.read_bytes())
        newer = write_bundle(home / "bundles", "digits", "1.1.0", TARGET, onnx_file(retrained(weights, 2)))
        processes.run(f"edgekit registry publish {newer} --delta-from 1.0.0")
        results.append(_update(home, processes, "1.1.0", "a delta"))
        return results
    finally:
        processes.stop_all()


def _update(home: Path, processes: Processes, version: str, source: str) -> Figure:
    with _agent(home) as (agent, log):
        _await(log, "connected", agent)
        time.sleep(IDLE_SECONDS)
        idle = _status(agent.pid, "VmRSS")
        Path(f"/proc/{agent.pid}/clear_refs").write_text("5")  # resets the peak (VmHWM)
        processes.run(f"edgekit rollout start digits {version} --waves 100%")
        _await(log, STAGED, agent)
        peak = _status(agent.pid, "VmHWM")
        if ("of a delta" in log.read_text()) != (source == "a delta"):
            raise SystemExit(f"the agent did not update from {source}")
        begun = time.monotonic()
        while time.monotonic() - begun < IDLE_SECONDS:
            time.sleep(0.1)
        tested = _status(agent.pid, "VmHWM")
    (state,) = [line for line in processes.run("edgekit rollout list").splitlines() if version in line][-1:]
    processes.run(f"edgekit rollout abort {state.split()[0]}")
    note = f"{ARTIFACT_BYTES // 1_000_000} MB artifact; idle {idle:.0f} MiB; with TESTING {tested - idle:.0f} MiB above"
    return Figure(f"agent memory from offer to staged, {source}", peak - idle, "MiB above idle", 15.0, note=note)


@contextlib.contextmanager
def _agent(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = home / "agent.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
    command = [sys.executable, "-m", "device_agents", "--verbose", "run", "--config", str(home / "d1" / "agent.toml")]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as agent:
        try:
            yield agent, log
        finally:
            agent.terminate()


def _await(log: Path, word: str, agent: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while word not in log.read_text():
        if time.monotonic() > deadline or agent.poll() is not None:
            raise SystemExit(f"the agent did not log {word!r}; its log ends:\n{log.read_text()[-2000:]}")
        time.sleep(0.002)


def _status(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
