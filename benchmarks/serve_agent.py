"""Memory and idle CPU of a whole agent with one small model, connected to a broker; `start` measures its start."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import Figure
from benchmarks.serve_load import Server, cpu_ns, free_port, process, pss_mb, wait_for, wire
from device_agents.deployment import Installed, UpdateRecord
from device_agents.storage.journal import Journal
from device_agents.storage.slots import Slots
from edgekit.bundle.manifest import Manifest
from edgekit.serving.oip import codec as oip
from edgekit.storage.disk import FolderDisk
from edgekit.trust.keys import generate_key
from edgekit.trust.repository import Repository
from tests.simulators.small_models import SURE, litert_bundle, onnx_bundle
from tests.simulators.store import MemoryStore

SETTLE_SECONDS = 8.0
IDLE_SECONDS = 30.0
KINDS = ("LiteRT", "ONNX Runtime")
REACH_PSS = {"LiteRT": 60.0, "ONNX Runtime": 75.0}


def prepare(folder: Path, kind: str, broker: str) -> Path:
    """Write the folder of an enrolled device with one committed model. Returns the path of agent.toml."""
    folder.mkdir()
    make = litert_bundle if kind == "LiteRT" else onnx_bundle
    manifest: Manifest = make(folder / "bundle")
    generate_key(folder / "device.key")
    (folder / "root.json").write_bytes(Repository(MemoryStore(), folder / "keys").create())
    settings = f'device = "d1"\nfleet = "bench"\ntarget = "x86-64"\nbroker = "{broker}"\nhttp = "127.0.0.1:0"\n'
    (folder / "agent.toml").write_text(settings)
    disk = FolderDisk(folder / "state")
    for path in (folder / "bundle").iterdir():
        disk.write(f"in/{path.name}", path.read_bytes())
    slots = Slots(disk, manifest.name)
    slots.stage("a", manifest.canonical_bytes(), "in")
    slots.point("a", "a")
    installed = Installed("a", manifest.digest, manifest.version, 1, 1.7e9)
    Journal(disk).save(manifest.name, UpdateRecord(active=installed, known_good=installed, release=1))
    return folder / "agent.toml"


def small_request() -> bytes:
    """The bytes of a request for the model."""
    body, length = oip.encode_request({"x": SURE})
    return wire("/v2/models/small/infer", body, oip.Encoded(body, length).headers)


def agent(kind: str, settings: Path) -> list[Figure]:
    """Start an agent, send one request, then measure it while idle."""
    command = [sys.executable, "-m", "device_agents", "run", "--config", str(settings)]
    with process(command, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert match, line
        address = ("127.0.0.1", int(match.group(1)))
        wait_for(Server("agent", running.pid, socket.AF_INET, address, {"one": small_request()}), "one")
        time.sleep(SETTLE_SECONDS)
        before, since = cpu_ns(running.pid), time.monotonic()
        time.sleep(IDLE_SECONDS)
        used = (cpu_ns(running.pid) - before) / 1e9 / (time.monotonic() - since) * 100
        memory = pss_mb(running.pid)
    note = "edgekit-agent run, one small model, MQTT connected"
    return [
        Figure(f"agent with {kind}: memory (PSS), idle", memory, "MB", REACH_PSS[kind], note=note),
        Figure(f"agent with {kind}: idle CPU of a core", used, "%", 0.5, note=f"{note}, {IDLE_SECONDS:.0f} s"),
    ]


def measure() -> list[Figure]:
    """Figures of the agent with each runtime."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-agent-") as name:
        folder = Path(name)
        program = str(Path(sys.executable).with_name("edgekit"))
        command = [program, "broker", "run", "--port", str(port), "--folder", str(folder / "broker")]
        with process(command, stderr=subprocess.DEVNULL) as broker:
            assert broker.stdout is not None
            broker.stdout.readline()
            return [
                figure
                for kind in KINDS
                for figure in agent(kind, prepare(folder / kind.split()[0], kind, f"mqtt://127.0.0.1:{port}"))
            ]


if __name__ == "__main__":
    for one in measure():
        print(one.figure, round(one.value, 3), one.unit, one.reach, one.met)
