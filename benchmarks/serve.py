"""Server cost of one small request: edgekit beside the runtime alone and other model servers.

The main figure is the CPU time of the server process per request, which varies less than latency on a shared machine.
All servers run at once and the client measures them in turns, so other load on the machine affects all of them. The
figure is the median of the turns.
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

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import peers, serve_agent, serve_overload
from benchmarks.results import Figure, publish
from benchmarks.serve_load import (
    CONNECTIONS,
    FORMS,
    REQUESTS,
    WARM_UP,
    Server,
    free_port,
    oip_requests,
    own_route_requests,
    process,
    pss_mb,
    turn,
    wait_for,
)
from device_agents.inference.service import InferenceService
from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import Golden, Manifest, Tolerance, file_entry
from edgekit.bundle.recipe import Recipe
from edgekit.runtimes import open_runtime
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.tensors import DType, TensorSpec

TURNS = 5
REACH_OVER_BARE = 1.6
REACH_UNDER = {"mlserver": 4.0, "kserve": 6.0}


def mlp(folder: Path) -> tuple[Path, Manifest]:
    """A bundle with 64 inputs, two hidden layers, 10 outputs and 17,226 parameters.

    Inference takes so little time that most of the cost is the server's.
    """
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
    limits = Golden(1, (Tolerance("y", "onnxruntime", 1e-5),), decisions_match=False)
    bindings = (Binding(x_spec, x_spec),), (Binding(y_spec, y_spec),)
    manifest = Manifest("m", "1.0.0", "server", "onnxruntime", entries, *bindings, limits, Recipe())
    return folder / "model.onnx", manifest


# --- servers


async def run_edgekit(folder: Path) -> None:
    """Run the agent's endpoint until killed; prints its port when it is ready."""
    _, manifest = mlp(folder)
    async with InferenceService() as service:
        await service.activate("m", manifest, folder)
        app = App(service, max_request_bytes=2**20)
        async with serve(app, http="127.0.0.1:0", socket=folder / "edgekit.sock") as bound:
            print(bound.url.rpartition(":")[2], flush=True)
            await asyncio.Event().wait()


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[list[Server]]:
    """Start edgekit and every available peer; stop them with the block."""
    model, _ = mlp(folder)
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(process([sys.executable, "-m", "benchmarks.serve", str(folder)]))
        assert own.stdout is not None
        port, requests = int(own.stdout.readline()), oip_requests()
        running = [
            Server("edgekit", own.pid, socket.AF_INET, ("127.0.0.1", port), requests),
            Server("edgekit, UNIX socket", own.pid, socket.AF_UNIX, str(folder / "edgekit.sock"), requests),
        ]
        for name in PEERS:
            python: str | Path | None = sys.executable
            if name in peers.PEERS:
                reason = peers.make(name)
                if reason:
                    print(f"skipped {name}: {reason}", file=sys.stderr)
                    continue
                python = peers.python_of(name)
            port = free_port()
            command = [str(python), str(Path(__file__).with_name("serve_peers.py")), name, str(model), str(port)]
            peer = stack.enter_context(process(command, stderr=subprocess.DEVNULL))
            running.append(Server(name, peer.pid, socket.AF_INET, ("127.0.0.1", port), PEERS[name]()))
        for server in list(running):
            try:
                wait_for(server, next(iter(server.requests)))
            except TimeoutError as error:
                print(f"skipped {server.name}: {error}", file=sys.stderr)
                running.remove(server)
        yield running


PEERS = {
    "bare": oip_requests,
    "threads": oip_requests,
    "fastapi": oip_requests,
    "mlserver": lambda: oip_requests(("JSON",)),  # its REST endpoint has no binary tensors
    "kserve": lambda: oip_requests(with_id=True),
    "litserve": own_route_requests,
    "bentoml": own_route_requests,
}


# --- measuring


def runtime_alone(folder: Path) -> float:
    """CPU microseconds of the runtime per row, in this process."""
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
    """Run the benchmark and write ``serve.json``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        floor = runtime_alone(folder)
        with servers(folder) as running:
            memory = {server.name: pss_mb(server.pid) for server in running}
            turns: dict[tuple[str, str], list[float]] = {}
            for _ in range(TURNS):
                for form in FORMS:
                    for server in running:
                        if form in server.requests:
                            turns.setdefault((server.name, form), []).append(turn(server, form))
        medians = {key: statistics.median(values) for key, values in turns.items()}
        results = figures(medians, floor, memory)
        results += serve_overload.measure(folder)
        results += serve_agent.measure()
    publish("serve", results)


def figures(cpu_us: dict[tuple[str, str], float], floor: float, memory: dict[str, float]) -> list[Figure]:
    """The figures of CPU time and memory.

    Args:
        cpu_us: CPU microseconds per request, by server and form.
        floor: CPU microseconds of the runtime alone.
        memory: PSS in MB, by server.
    """
    results = []
    how = f"median of {TURNS} interleaved turns of {REQUESTS}, {CONNECTIONS} connections, MLP 64-128-64-10"
    for form in FORMS:
        others = {
            name: value for (name, kind), value in cpu_us.items() if kind == form and not name.startswith("edgekit")
        }
        results += [
            Figure(
                f"server CPU, small {form} request, {where}",
                cpu_us[name, form],
                "us",
                peers={"runtime alone": floor, **others},
                note=how,
            )
            for name, where in (("edgekit", "TCP"), ("edgekit, UNIX socket", "UNIX socket"))
        ]
    ratio = cpu_us["edgekit", "binary"] / cpu_us["bare", "binary"]
    results.append(Figure("small binary request over the bare handler", ratio, "x", reach=REACH_OVER_BARE))
    for name in PEERS:
        best = min((value for (server, _), value in cpu_us.items() if server == name), default=None)
        if name != "bare" and best is not None:
            note = "each in its fastest form"
            ratio = best / cpu_us["edgekit", "binary"]
            results.append(Figure(f"{name} over edgekit", ratio, "x", REACH_UNDER.get(name), at_most=False, note=note))
    others = {name: value for name, value in memory.items() if not name.startswith("edgekit")}
    note = "one small ONNX model, before the first turn; all processes of a server"
    results.append(Figure("memory (PSS), serving, no MQTT", memory["edgekit"], "MB", peers=others, note=note))
    return results


if __name__ == "__main__":
    asyncio.run(run_edgekit(Path(sys.argv[1])))
