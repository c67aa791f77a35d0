"""Sessions of models whose batch is not the first axis, with fixed inputs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import Manifest
from edgekit.errors import DataError
from edgekit.runtimes import open_runtime
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.batching import can_batch
from edgekit.serving.session.session import Session, SessionTimes
from edgekit.tensors import DType, TensorSpec
from tests.simulators.small_models import onnx_bundle, softmax

RATE = TensorSpec("sr", DType.INT64, ())


def turned(folder: Path, *, batch: int | None) -> Manifest:
    """A bundle of `small_models` whose logical tensors have the batch last, and a fixed scalar input beside."""
    manifest = onnx_bundle(folder, batch=batch)

    def last(binding: Binding) -> Binding:
        spec = binding.spec
        return msgspec.structs.replace(
            binding, spec=TensorSpec(spec.name, spec.dtype, spec.shape[::-1]), permute=(1, 0)
        )

    inputs = (*map(last, manifest.inputs), Binding(RATE, RATE, value=16000))
    return msgspec.structs.replace(manifest, inputs=inputs, outputs=tuple(map(last, manifest.outputs)))


@pytest.mark.parametrize("batch", [None, 1])
async def test_requests_are_joined_along_the_batch(tmp_path: Path, batch: int | None) -> None:
    """Each request gets its own answer in its own layout, joined or not, and golden rows are samples."""
    manifest = turned(tmp_path, batch=batch)
    assert can_batch(manifest) == (batch is None)
    session = await Session.open(manifest, tmp_path, open_runtime, queue_limit=64, times=SessionTimes(inline=0.0))
    await session.warm()
    await session.calibrate()
    session.batch_rows = 8
    rng = np.random.default_rng(0)
    requests = [{"x": rng.random((3, n), np.float32), "sr": np.array(16000)} for n in (1, 2, 3, 1, 2)]
    requests[1].pop("sr")
    answers = await asyncio.gather(*(session.run(one) for one in requests))
    for one, found in zip(requests, answers, strict=True):
        np.testing.assert_allclose(found["scores"], softmax(one["x"].T).T, atol=1e-6)
        assert found["tag"].shape == (1, one["x"].shape[1])
    with pytest.raises(DataError, match="fixed to 16000"):
        await session.run({**requests[0], "sr": np.array(8000)})
    golden = (tmp_path / "golden.npz").read_bytes()
    assert (await session.call(lambda runtime: self_test(runtime, manifest, golden))).passed
    assert session.statistics.rows >= 9
    await session.close()


@pytest.mark.parametrize("binary", [True, False])
def test_scalars_pass_through_the_protocol(binary: bool) -> None:
    """A tensor of shape [] has one element in a request and in an answer."""
    sent = oip.encode_request({"sr": np.array(16000), "gain": np.array(0.5, np.float32)}, binary=binary)
    got = oip.parse_request(*sent).inputs
    assert (got["sr"].shape, int(got["sr"]), got["sr"].dtype) == ((), 16000, np.int64)
    assert (got["gain"].shape, float(got["gain"])) == ((), 0.5)
