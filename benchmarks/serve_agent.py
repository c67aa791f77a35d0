"""Memory, start time and idle CPU of a whole agent with one small model, connected to a broker.

Seconds differ threefold between machines, so the start is compared with the bare start of Python, numpy, the runtime
and the same model, in alternating starts of the same run.
"""

from __future__ import annotations

import re
import socket
import statistics
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
STARTS = 7
REACH_START = 2.0
BARE = {
    "LiteRT": """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
model = Interpreter(model_path=sys.argv[1])
model.allocate_tensors()
first = model.get_input_details()[0]
model.set_tensor(first["index"], np.zeros(first["shape"], first["dtype"]))
model.invoke()
print(model.get_tensor(model.get_output_details()[0]["index"]), flush=True)
""",
    "ONNX Runtime": """
import sys
import numpy as np
import onnxruntime
model = onnxruntime.InferenceSession(sys.argv[1])
first = model.get_inputs()[0]
print(model.run(None, {first.name: np.zeros(first.shape, np.float32)})[0], flush=True)
""",
}
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


def agent(kind: str, settings: Path) -> list[Figure]:
    """Start an agent some times, send one request each, then measure the last one while idle."""
    model = next((settings.parent / "bundle").glob("model.*"))
    starts, bare = [], []
    for _ in range(STARTS):
        bare.append(bare_start(kind, model))
        starts.append(started_agent(settings, idle=False)[0])
    started, idle, memory = started_agent(settings, idle=True)
    ratio = statistics.median([*starts, started]) / statistics.median(bare)
    note = "edgekit-agent run, one small model, MQTT connected"
    beside = f"medians of {STARTS + 1} and {STARTS} alternating starts"
    return [
        Figure(f"agent with {kind}: memory (PSS), idle", memory, "MB", REACH_PSS[kind], note=note),
        Figure(
            f"agent with {kind}: start to first answer, over the bare start", ratio, "times", REACH_START,
            peers={"bare start in s": statistics.median(bare)}, note=f"Python, numpy, runtime and model; {beside}",
        ),
        Figure(f"agent with {kind}: start to first answer", statistics.median(starts), "s", note=note),
        Figure(f"agent with {kind}: idle CPU of a core", idle, "%", 0.5, note=f"{note}, {IDLE_SECONDS:.0f} s"),
    ]  # fmt: skip


def bare_start(kind: str, model: Path) -> float:
    """Seconds from the start of a process to the first answer of the model in it."""
    begun = time.monotonic()
    with process([sys.executable, "-c", BARE[kind], str(model)], stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        assert running.stdout.readline()
        return time.monotonic() - begun


def started_agent(settings: Path, *, idle: bool) -> tuple[float, float, float]:
    """Start an agent: seconds to its first answer, and with `idle` its CPU in percent of a core and its PSS in MB."""
    body, length = oip.encode_request({"x": SURE})
    request = wire("/v2/models/small/infer", body, oip.Encoded(body, length).headers)
    begun = time.monotonic()
    command = [sys.executable, "-m", "device_agents", "run", "--config", str(settings)]
    with process(command, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert match, line
        server = Server("agent", running.pid, socket.AF_INET, ("127.0.0.1", int(match.group(1))), {"one": request})
        wait_for(server, "one")
        started = time.monotonic() - begun
        if not idle:
            return started, 0.0, 0.0
        time.sleep(SETTLE_SECONDS)
        before, since = cpu_ns(running.pid), time.monotonic()
        time.sleep(IDLE_SECONDS)
        used = (cpu_ns(running.pid) - before) / 1e9 / (time.monotonic() - since) * 100
        return started, used, pss_mb(running.pid)


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
                for kind in REACH_PSS
                for figure in agent(kind, prepare(folder / kind.split()[0], kind, f"mqtt://127.0.0.1:{port}"))
            ]


if __name__ == "__main__":
    for one in measure():
        print(one.figure, round(one.value, 3), one.unit, one.reach, one.met)
