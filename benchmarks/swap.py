"""Latency of requests during switches of the model version, beside the latency without switches.

One process with real models receives requests at a fixed pace. In every second turn the version changes again and
again, with a short pause after each switch.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.results import Figure, publish
from device_agents.inference.service import InferenceService
from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import Golden, Manifest, Tolerance, file_entry
from edgekit.bundle.recipe import Recipe
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.memory_usage import few_arenas, rss_bytes
from edgekit.tensors import DType, TensorSpec

WIDTH, LAYERS = 512, 8
PACE_SECONDS = 0.01
PAUSE_SECONDS = 0.25
TURN_SECONDS, TURNS = 3.0, 5
SWAPS = 1000
REACH_P99 = 2.0


def bundle(folder: Path, version: str, seed: int) -> tuple[Manifest, Path]:
    """Write a bundle of dense layers with 2 million weights: under 1 ms for inference, about 10 ms to load."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    weights = {f"w{i}": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32) for i in range(LAYERS)}
    names = ["x", *(f"h{i}" for i in range(LAYERS - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(LAYERS)]
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", WIDTH])] for n in ("x", "y")]
    graph = helper.make_graph(nodes, "dense", *infos, [numpy_helper.from_array(v, n) for n, v in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data = bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    x = np.ones((1, WIDTH), np.float32)
    golden = write_golden({"x": x}, OnnxRuntime(data).run({"x": x}))
    (folder / "model.onnx").write_bytes(data)
    (folder / "golden.npz").write_bytes(golden)
    specs = [TensorSpec(n, DType.FLOAT32, (None, WIDTH)) for n in ("x", "y")]
    entries = (file_entry("model.onnx", "model", data), file_entry("golden.npz", "golden", golden))
    limits = Golden(1, (Tolerance("y", "onnxruntime", 1e-3),), decisions_match=False)
    x_binding, y_binding = ((Binding(spec, spec),) for spec in specs)
    return Manifest("m", version, "server", "onnxruntime", entries, x_binding, y_binding, limits, Recipe()), folder


async def paced(service: InferenceService, seconds: float) -> list[float]:
    """Send requests at a fixed pace. Returns the milliseconds from each request's due time to its answer."""
    x = {"x": np.ones((1, WIDTH), np.float32)}
    latencies: list[float] = []
    due = time.perf_counter()
    end = due + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await service.infer("m", x)
        latencies.append((time.perf_counter() - due) * 1e3)
        due += PACE_SECONDS
    return latencies


async def measure(bundles: list[tuple[Manifest, Path]], swap: str) -> tuple[list[float], list[float]]:
    """Milliseconds of requests without switches and with switches, measured in alternating turns."""
    steady: list[float] = []
    switching: list[float] = []
    async with InferenceService(options=ModelOptions(swap=swap)) as service:  # type: ignore[arg-type]
        await service.activate("m", *bundles[0])
        await paced(service, 1.0)

        async def switch(stop: asyncio.Event) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                await service.activate("m", *bundles[n % 2])
                await asyncio.sleep(PAUSE_SECONDS)

        for _ in range(TURNS):
            steady += await paced(service, TURN_SECONDS)
            stop = asyncio.Event()
            running = asyncio.ensure_future(switch(stop))
            switching += await paced(service, TURN_SECONDS)
            stop.set()
            await running
    return steady, switching


async def grow(bundles: list[tuple[Manifest, Path]]) -> tuple[float, int]:
    """Growth of memory over SWAPS switches under load, without the first tenth, and the number of failed requests."""
    failed = 0
    x = {"x": np.ones((1, WIDTH), np.float32)}
    async with InferenceService(options=ModelOptions(swap="load-first")) as service:
        await service.activate("m", *bundles[0])
        stop = asyncio.Event()

        async def client() -> None:
            nonlocal failed
            while not stop.is_set():
                answer = await service.infer("m", x)
                failed += answer.parameters["edgekit_route"] != "local"
                await asyncio.sleep(0)

        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        memory = []
        for n in range(SWAPS):
            await service.activate("m", *bundles[n % 2])
            memory.append(rss_bytes())
        stop.set()
        await asyncio.gather(*clients)
    tenth = SWAPS // 10
    return min(memory[-tenth:]) / min(memory[tenth : 2 * tenth]) - 1, failed


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100)[-1]


def main() -> None:
    """Run the benchmark and write ``swap.json``."""
    few_arenas()
    with tempfile.TemporaryDirectory() as name:
        bundles = [bundle(Path(name) / f"{n}", f"{n}.0.0", n) for n in (1, 2)]
        figures = []
        for swap in ("load-first", "unload-first"):
            steady, switching = asyncio.run(measure(bundles, swap))
            note = f"{LAYERS} layers of {WIDTH}; a request each {PACE_SECONDS:g} s, switches {PAUSE_SECONDS:g} s apart"
            figures += [
                Figure(f"p99 steady, {swap}", p99(steady), "ms", note=note),
                Figure(f"p99 while switching, {swap}", p99(switching), "ms", note=note),
            ]
            if swap == "load-first":
                ratio = p99(switching) / p99(steady)
                figures.append(Figure("p99 while switching over steady", ratio, "x", reach=REACH_P99))
        growth, failed = asyncio.run(grow(bundles))
    figures += [
        Figure(f"memory growth over {SWAPS} switches under load", 100 * growth, "%", reach=5.0),
        Figure(f"failed requests in {SWAPS} switches under load", failed, "", reach=0),
    ]
    publish("swap", figures)


if __name__ == "__main__":
    main()
