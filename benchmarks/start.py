"""Start of a whole agent to its first answer, beside the bare start of Python, numpy, the runtime and the same model.

Both start in turns, as processes of their own, and both find compiled Python files, as after an installation: a first
start of each, which writes them, is not counted. Seconds differ threefold between machines, so the figure is a ratio
within the same run.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.results import Figure, publish
from benchmarks.serve_agent import KINDS, prepare, small_request
from benchmarks.serve_load import Server, ask, connected, free_port, process

STARTS = 9
REACH = 2.0
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
sys.stdin.read()
""",
    "ONNX Runtime": """
import sys
import numpy as np
import onnxruntime
model = onnxruntime.InferenceSession(sys.argv[1])
first = model.get_inputs()[0]
print(model.run(None, {first.name: np.zeros(first.shape, np.float32)})[0], flush=True)
sys.stdin.read()
""",
}


class Start(NamedTuple):
    """Seconds from the start of a process to its first answer: of a clock, and of the processor."""

    wall: float
    cpu: float


def environment() -> dict[str, str]:
    """The environment of both processes, in which Python writes compiled files."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def cpu_seconds(pid: int) -> float:
    """Processor seconds of a process, its ended threads included (Linux; see clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def bare_start(kind: str, model: Path, env: Mapping[str, str]) -> Start:
    """Start the runtime with a model and nothing else."""
    command = [sys.executable, "-c", BARE[kind], str(model)]
    begun = time.monotonic()
    with process(command, stderr=subprocess.DEVNULL, stdin=subprocess.PIPE, env=env) as running:
        assert running.stdout is not None
        assert running.stdout.readline()
        return Start(time.monotonic() - begun, cpu_seconds(running.pid))


def agent_start(settings: Path, env: Mapping[str, str]) -> Start:
    """Start an agent, and send one request when it says that it is ready."""
    request = small_request()
    command = [str(Path(sys.executable).with_name("edgekit-agent")), "run", "--config", str(settings)]
    begun = time.monotonic()
    with process(command, stderr=subprocess.DEVNULL, env=env) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert match, line
        server = Server("agent", running.pid, socket.AF_INET, ("127.0.0.1", int(match.group(1))), {})
        with connected(server, 1) as connections:
            ask(connections, request, 1)
        return Start(time.monotonic() - begun, cpu_seconds(running.pid))


def measure(kind: str, folder: Path) -> list[Figure]:
    """Figures of one runtime."""
    settings = prepare(folder / kind.split()[0], kind, f"mqtt://127.0.0.1:{free_port()}")
    model = next((settings.parent / "bundle").glob("model.*"))
    env = environment()
    bare, agent = [], []
    for turn in range(STARTS + 1):
        one, other = bare_start(kind, model, env), agent_start(settings, env)
        if turn:
            bare.append(one)
            agent.append(other)
    figures = []
    for name, field in (("processor time", "cpu"), ("time", "wall")):
        alone, whole = (statistics.median(getattr(one, field) for one in starts) for starts in (bare, agent))
        figures.append(
            Figure(
                f"agent with {kind}: {name} from start to first answer, over the bare start",
                whole / alone,
                "times",
                REACH,
                peers={"bare start in s": alone, "agent in s": whole},
                note=f"medians of {STARTS} starts each, in turns; one small model, no broker",
            )
        )
    return figures


def main() -> None:
    """Run the benchmark and write ``start.json``."""
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-start-") as name:
        publish("start", [figure for kind in KINDS for figure in measure(kind, Path(name))])


if __name__ == "__main__":
    main()
