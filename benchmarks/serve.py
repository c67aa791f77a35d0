"""What one small request costs the server: edgekit beside the runtime alone and servers that do only the same.

The main figure is CPU time of the server process a request; it is steadier than latency on a shared machine. All
servers run at once and are asked in turns, so that what disturbs one disturbs all; the median of the turns is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import peers
from benchmarks.results import Figure, publish
from device_agents.inference import InferenceService
from edgekit.golden import write_golden
from edgekit.manifest import Binding, Golden, Manifest, Tolerance, file_entry
from edgekit.recipe import Recipe
from edgekit.runtimes import open_runtime
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.serving import oip
from edgekit.serving.app import App
from edgekit.serving.server import serve
from edgekit.tensors import DType, TensorSpec

CONNECTIONS = 16
TURNS = 5
REQUESTS = 640  # a turn, over all connections
WARM_UP = 160
FORMS = ("binary", "JSON")
REACH_OVER_BARE = 1.6


class Server(NamedTuple):
    """A running server and how to reach it."""

    name: str
    pid: int
    family: int
    address: Any


def mlp(folder: Path) -> tuple[Path, Manifest]:
    """64 inputs, two hidden layers, 10 outputs, 17,226 parameters: small enough that serving it is most of the cost."""
    rng = np.random.default_rng(0)
    sizes, nodes, weights, last = (64, 128, 64, 10), [], {}, "x"
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{i}"] = rng.normal(0, 0.1, (rows, columns)).astype(np.float32)
        weights[f"b{i}"] = np.zeros(columns, np.float32)
        out = "y" if i == 2 else f"h{i}"
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [out]))
        if i < 2:
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"]))
        last = f"r{i}"
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s])] for n, s in (("x", 64), ("y", 10))]
    graph = helper.make_graph(nodes, "mlp", *infos, [numpy_helper.from_array(v, n) for n, v in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data = model.SerializeToString()
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(data)
    x = np.zeros((1, 64), np.float32)
    golden = write_golden({"x": x}, OnnxRuntime(data).run({"x": x}))
    (folder / "golden.npz").write_bytes(golden)
    x_spec, y_spec = (TensorSpec(n, DType.FLOAT32, (None, s)) for n, s in (("x", 64), ("y", 10)))
    entries = (file_entry("model.onnx", "model", data), file_entry("golden.npz", "golden", golden))
    judged = Golden(1, (Tolerance("y", "onnxruntime", 1e-5),), decisions_match=False)
    bindings = (Binding(x_spec, x_spec),), (Binding(y_spec, y_spec),)
    manifest = Manifest("m", "1.0.0", "server", "onnxruntime", entries, *bindings, judged, Recipe())
    return folder / "model.onnx", manifest


# --- servers


async def run_edgekit(folder: Path) -> None:
    """The device's endpoint, in a process of its own; prints its port when it is ready."""
    _, manifest = mlp(folder)
    async with InferenceService() as service:
        await service.activate("m", manifest, folder)
        app = App(service, max_request_bytes=2**20)
        async with serve(app, http="127.0.0.1:0", socket=folder / "edgekit.sock") as bound:
            print(bound.url.rpartition(":")[2], flush=True)
            await asyncio.Event().wait()


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A server process that ends with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.terminate()


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[list[Server]]:
    """Our own and every peer that can be had, all running."""
    model, _ = mlp(folder)
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(process([sys.executable, "-m", "benchmarks.serve", str(folder)]))
        assert own.stdout is not None
        port = int(own.stdout.readline())
        made = [
            Server("edgekit", own.pid, socket.AF_INET, ("127.0.0.1", port)),
            Server("edgekit, UNIX socket", own.pid, socket.AF_UNIX, str(folder / "edgekit.sock")),
        ]
        script = str(Path(__file__).with_name("serve_peers.py"))
        for name in ("bare", "threads", "fastapi"):
            python: str | Path | None = sys.executable
            if name in peers.PEERS:
                reason = peers.make(name)
                if reason:
                    print(f"skipped {name}: {reason}", file=sys.stderr)
                    continue
                python = peers.python_of(name)
            port = free_port()
            peer = stack.enter_context(process([str(python), script, name, str(model), str(port)]))
            made.append(Server(name, peer.pid, socket.AF_INET, ("127.0.0.1", port)))
        for server in made:
            wait_for(server)
        yield made


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(server: Server) -> None:
    """Until it takes connections.

    Raises:
        TimeoutError: it does not within 30 s.
    """
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(ConnectionError, FileNotFoundError), socket.socket(server.family) as probe:
            probe.connect(server.address)
            return
        time.sleep(0.05)
    raise TimeoutError(f"{server.name} did not start")


# --- measuring


def cpu_ns(pid: int) -> int:
    """CPU time of a process, by the scheduler's count of each of its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def requests() -> dict[str, bytes]:
    """One small request in each form, as it goes over the wire."""
    x = np.random.default_rng(1).random((1, 64)).astype(np.float32)
    made = {}
    for form in FORMS:
        sent = oip.encode_request({"x": x}, binary=form == "binary")
        headers = {"Host": "localhost", "Content-Length": str(len(sent.body)), **sent.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        made[form] = f"POST /v2/models/m/infer HTTP/1.1\r\n{head}\r\n".encode() + sent.body
    return made


def ask(connections: list[socket.socket], request: bytes, count: int) -> None:
    """Send `count` requests, one at a time on each connection, all connections at once."""
    for _ in range(count // len(connections)):
        for connection in connections:
            connection.sendall(request)
        for connection in connections:
            read_answer(connection)


def read_answer(connection: socket.socket) -> None:
    data = connection.recv(65536)
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), data
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    missing = int(fields[b"content-length"]) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536))


def turn(server: Server, request: bytes) -> float:
    """CPU microseconds of the server a request."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.socket(server.family)) for _ in range(CONNECTIONS)]
        for connection in connections:
            connection.settimeout(30)
            connection.connect(server.address)
        ask(connections, request, WARM_UP)
        before = cpu_ns(server.pid)
        ask(connections, request, REQUESTS)
        return (cpu_ns(server.pid) - before) / REQUESTS / 1000


def runtime_alone(folder: Path) -> float:
    """CPU microseconds of the runtime a row, in this process."""
    _, manifest = mlp(folder)
    runtime = open_runtime(manifest, folder)
    x = {"x": np.zeros((1, 64), np.float32)}
    for _ in range(WARM_UP):
        runtime.run(x)
    turns = []
    for _ in range(TURNS):
        before = time.process_time_ns()
        for _ in range(REQUESTS):
            runtime.run(x)
        turns.append((time.process_time_ns() - before) / REQUESTS / 1000)
    return statistics.median(turns)


def main() -> None:
    """Measure, print, write results/serve.json."""
    sent = requests()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        floor = runtime_alone(folder)
        with servers(folder) as running:
            idle = pss_mb(running[0].pid)
            turns: dict[tuple[str, str], list[float]] = {}
            for _ in range(TURNS):
                for form in FORMS:
                    for server in running:
                        turns.setdefault((server.name, form), []).append(turn(server, sent[form]))
    found = {key: statistics.median(values) for key, values in turns.items()}
    publish("serve", figures(found, [server.name for server in running], floor, idle))


def figures(found: dict[tuple[str, str], float], names: list[str], floor: float, idle: float) -> list[Figure]:
    """The figures, from CPU microseconds by server and form."""
    made = []
    how = f"median of {TURNS} interleaved turns of {REQUESTS}, {CONNECTIONS} connections, MLP 64-128-64-10"
    others = [name for name in names if not name.startswith("edgekit")]
    for form in FORMS:
        peer_values = {"runtime alone": floor, **{name: found[name, form] for name in others}}
        made += [
            Figure(f"server CPU, small {form} request, {where}", found[name, form], "us", peers=peer_values, note=how)
            for name, where in (("edgekit", "TCP"), ("edgekit, UNIX socket", "UNIX socket"))
        ]
    ratio = found["edgekit", "binary"] / found["bare", "binary"]
    made.append(Figure("small binary request over the bare handler", ratio, "x", reach=REACH_OVER_BARE))
    over = {name: found[name, "binary"] / found["edgekit", "binary"] for name in others if name != "bare"}
    made += [Figure(f"{name} over edgekit, small binary request", value, "x") for name, value in over.items()]
    made.append(
        Figure("memory (PSS), serving, no MQTT", idle, "MB", note="one small ONNX model, before the first turn")
    )
    return made


if __name__ == "__main__":
    asyncio.run(run_edgekit(Path(sys.argv[1])))
