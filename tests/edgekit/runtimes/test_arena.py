"""How much of the CPU's memory ONNX Runtime may hold for a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agents.inference.service import InferenceService
from edgekit.errors import ArenaFullError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.runtimes.providers import Acceleration
from edgekit.serving.session.memory_usage import give_back, held_bytes
from edgekit.serving.worker.runtime import WorkerRuntime
from tests.simulators.cloud import MemoryCloud
from tests.simulators.small_models import onnx_bundle, onnx_model, softmax

MIB = 2**20
LIMIT = 8 * MIB
FITS, TOO_MANY = np.ones((50_000, 3), np.float32), np.ones((2_000_000, 3), np.float32)  # 0.6 and 24 MiB a tensor


def test_a_run_that_needs_more_than_the_limit_fails_and_the_next_one_runs() -> None:
    """The error tells what was asked for, what is allowed and what to change; memory stays within the limit."""
    runtime = OnnxRuntime(onnx_model(), arena_bytes=LIMIT)
    runtime.run({"x": FITS})
    give_back()
    before = held_bytes()
    with pytest.raises(ArenaFullError, match=r"asked for 22\.9 MiB at once, .* left of the 8\.0 MiB") as caught:
        runtime.run({"x": TOO_MANY})
    assert "arena_mib" in caught.value.advice
    give_back()
    assert held_bytes() - before < LIMIT
    np.testing.assert_allclose(runtime.run({"x": FITS})["scores"], softmax(FITS), atol=1e-6)


def test_each_model_has_a_limit_of_its_own() -> None:
    """One that has used its memory up takes nothing from another, nor does one without a limit get one."""
    first, second, free = (OnnxRuntime(onnx_model(), arena_bytes=n) for n in (LIMIT, 8 * LIMIT, 0))
    for _ in range(2):
        with pytest.raises(ArenaFullError, match=r"left of the 8\.0 MiB"):
            first.run({"x": TOO_MANY[:1_000_000]})
        second.run({"x": TOO_MANY[:1_000_000]})
        free.run({"x": TOO_MANY})


def test_a_model_that_is_closed_gives_its_arena_back() -> None:
    """Twenty loads hold no more than one."""
    held = []
    for _ in range(20):
        runtime = OnnxRuntime(onnx_model(), arena_bytes=8 * LIMIT)
        runtime.run({"x": TOO_MANY[:1_000_000]})
        runtime.close()
        give_back()
        held.append(held_bytes())
    assert held[-1] - held[1] < LIMIT


def test_weights_are_not_counted() -> None:
    """4 MiB of them load and run within one."""
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
    """As with every failure of the runtime, local-only excepted."""
    manifest = onnx_bundle(tmp_path, batch=None)
    rows = TOO_MANY[:1_000_000]
    cloud = MemoryCloud({"scores": softmax(rows), "tag": np.zeros((len(rows), 1), np.float32)})
    async with InferenceService(cloud=cloud, acceleration=Acceleration(arena_bytes=LIMIT)) as service:
        await service.activate("m", manifest, tmp_path)
        found = await service.infer("m", {"x": rows})
        assert (found.parameters["edgekit_route"], found.parameters["edgekit_reason"]) == ("cloud", "local-error")
        with pytest.raises(ArenaFullError):
            await service.infer("m", {"x": rows}, route="local-only")


def test_a_worker_has_the_limit_too(tmp_path: Path) -> None:
    """And its error arrives as what it is."""
    manifest = onnx_bundle(tmp_path, batch=None)
    worker = WorkerRuntime(manifest, tmp_path, options={"acceleration": {"arena_bytes": LIMIT}})
    try:
        with pytest.raises(ArenaFullError, match=r"left of the 8\.0 MiB"):
            worker.run({"x": TOO_MANY})
        worker.run({"x": FITS})
    finally:
        worker.close()
