"""The limit of a model's arena in main memory with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from edgekit.errors import ArenaFullError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.runtimes.providers import Acceleration
from edgekit.serving.session.memory_usage import return_freed_memory, rss_bytes
from edgekit.serving.worker.runtime import WorkerRuntime
from tests.simulators.alone import alone
from tests.simulators.cloud import MemoryCloud
from tests.simulators.small_models import onnx_bundle, onnx_model, softmax

MIB = 2**20
LIMIT = 8 * MIB
FITS, TOO_MANY = np.ones((50_000, 3), np.float32), np.ones((2_000_000, 3), np.float32)  # 0.6 and 24 MiB a tensor


def test_a_run_that_needs_more_than_the_limit_fails_and_the_next_one_runs() -> None:
    """The error has the requested and the allowed memory and the setting to change."""
    alone(run_too_much)


def run_too_much() -> None:
    runtime = OnnxRuntime(onnx_model(), arena_bytes=LIMIT)
    runtime.run({"x": FITS})
    return_freed_memory()
    before = rss_bytes()
    with pytest.raises(ArenaFullError, match=r"asked for 22\.9 MiB at once, .* left of the 8\.0 MiB") as caught:
        runtime.run({"x": TOO_MANY})
    assert "arena_mib" in caught.value.advice
    return_freed_memory()
    assert rss_bytes() - before < LIMIT
    np.testing.assert_allclose(runtime.run({"x": FITS})["scores"], softmax(FITS), atol=1e-6)


def test_each_model_has_a_limit_of_its_own() -> None:
    """A model at its limit does not reduce another model's memory, and a model without a limit stays unlimited."""
    first, second, free = (OnnxRuntime(onnx_model(), arena_bytes=n) for n in (LIMIT, 8 * LIMIT, 0))
    for _ in range(2):
        with pytest.raises(ArenaFullError, match=r"left of the 8\.0 MiB"):
            first.run({"x": TOO_MANY[:1_000_000]})
        second.run({"x": TOO_MANY[:1_000_000]})
        free.run({"x": TOO_MANY})


def test_a_model_that_is_closed_gives_its_arena_back() -> None:
    """Twenty loads use no more memory than one."""
    alone(load_twenty_times)


def load_twenty_times() -> None:
    held = []
    for _ in range(20):
        runtime = OnnxRuntime(onnx_model(), arena_bytes=8 * LIMIT)
        runtime.run({"x": TOO_MANY[:1_000_000]})
        runtime.close()
        return_freed_memory()
        held.append(rss_bytes())
    assert held[-1] - held[1] < LIMIT


def test_weights_are_not_counted() -> None:
    """A model with 4 MiB of weights runs with a limit of 1 MiB."""
    found = OnnxRuntime(_wide(), arena_bytes=MIB).run({"x": np.ones((1, 1024), np.float32)})
    np.testing.assert_array_equal(found["y"], np.full((1, 1024), 1024, np.float32))


def _wide() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1024])],
        [numpy_helper.from_array(np.ones((1024, 1024), np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())


async def test_the_cloud_answers_what_does_not_fit(tmp_path: Path) -> None:
    """As with every failure of the runtime, except for local-only."""
    manifest = onnx_bundle(tmp_path, batch=None)
    rows = TOO_MANY[:1_000_000]
    cloud = MemoryCloud({"scores": softmax(rows), "tag": np.zeros((len(rows), 1), np.float32)})
    async with InferenceService(
        cloud=cloud, service=ServiceOptions(acceleration=Acceleration(arena_bytes=LIMIT))
    ) as service:
        await service.activate("m", manifest, tmp_path)
        found = await service.infer("m", {"x": rows})
        assert (found.parameters["edgekit_route"], found.parameters["edgekit_reason"]) == ("cloud", "local-error")
        with pytest.raises(ArenaFullError):
            await service.infer("m", {"x": rows}, route="local-only")


def test_a_worker_has_the_limit_too(tmp_path: Path) -> None:
    """The error of a worker process arrives with its own type."""
    manifest = onnx_bundle(tmp_path, batch=None)
    worker = WorkerRuntime(manifest, tmp_path, options={"acceleration": {"arena_bytes": LIMIT}})
    try:
        with pytest.raises(ArenaFullError, match=r"left of the 8\.0 MiB"):
            worker.run({"x": TOO_MANY})
        worker.run({"x": FITS})
    finally:
        worker.close()
