"""The cloud tier's model server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.manifest import Manifest
from edgekit.errors import DataError, NotFoundError, SelfTestError
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.metrics import render
from edgekit.serving.oip.codec import InferRequest
from tests.simulators.small_models import SURE, onnx_bundle, softmax


async def test_every_model_answers_with_its_own_bundle(tmp_path: Path) -> None:
    """Batches of any size are answered, and the answer names the bundle."""
    bundles = {name: onnx_bundle(tmp_path / name, name=name, batch=None, gain=2.0) for name in ("a", "b")}
    models = await CloudModels.open(["a", "b"], lambda name: (bundles[name], tmp_path / name), threads=1)
    assert models.models() == ["a", "b"]
    rows = np.repeat(SURE, 5, axis=0)
    for name, bundle in bundles.items():
        found = await models.answer(name, "1.0.0", InferRequest({"x": rows}))
        np.testing.assert_allclose(found.outputs["scores"], softmax(rows, 2.0), atol=1e-6)
        assert found.parameters == {
            "edgekit_route": "cloud",
            "edgekit_model": bundle.digest,
            "edgekit_version": "1.0.0",
        }
    assert models.describe("a", None).platform == "onnxruntime_onnx"
    with pytest.raises(NotFoundError, match="this cloud tier has a, b"):
        models.describe("c", None)
    with pytest.raises(NotFoundError, match="no version 9"):
        await models.answer("a", "9", InferRequest({"x": rows}))
    with pytest.raises(DataError, match="'z' is unknown"):
        await models.answer("a", None, InferRequest({"x": rows}, outputs={"z": False}))
    swaps = {"swaps": 1}
    assert models.counters() == {"a": {"requests": 2, "errors": 1, **swaps}, "b": {"requests": 1, "errors": 0, **swaps}}
    await models.close()


async def test_answers_with_nan_are_counted_by_version(tmp_path: Path) -> None:
    """A canary that answers NaN looked as good as its main version; NaN that was sent counts for no version."""
    manifest = onnx_bundle(tmp_path, name="a", batch=None, gain=1e37)
    models = await CloudModels.open(["a"], lambda _: (manifest, tmp_path), threads=1)
    for x in (SURE, SURE * 100, SURE * 100, SURE * np.nan):  # large inputs overflow
        await models.answer("a", None, InferRequest({"x": x}))
    assert models.counters()["a"]["unusable_answers.1.0.0"] == 2
    text = render(models.counters(), {}).decode()
    assert 'edgekit_model_unusable_answers_total{model="a",version="1.0.0"} 2\n' in text
    await models.close()


async def test_unknown_parameters_of_edgekits_own_are_refused_and_others_ignored(tmp_path: Path) -> None:
    """A request that asks to stay on its device was sent to the wrong server."""
    manifest = onnx_bundle(tmp_path, name="a", batch=None)
    models = await CloudModels.open(["a"], lambda name: (manifest, tmp_path), threads=1)
    for parameters in ({}, {"priority": 1}, {"edgekit_route": "cloud-only", "edgekit_deadline_ms": 9000}):
        assert (await models.answer("a", None, InferRequest({"x": SURE}, parameters=parameters))).version == "1.0.0"
    for parameters, says in (
        ({"edgekit_rout": "auto"}, "parameter 'edgekit_rout' is unknown, expected edgekit_route or"),
        ({"edgekit_route": "local-only"}, "edgekit_route is 'local-only', and this is the cloud tier"),
        ({"edgekit_route": 7}, "edgekit_route is '7'"),
    ):
        with pytest.raises(DataError, match=says):
            await models.answer("a", None, InferRequest({"x": SURE}, parameters=parameters))
    await models.close()


async def test_a_model_that_fails_its_self_test_never_serves(tmp_path: Path) -> None:
    """The start fails with the reason, and the models that were loaded before are freed."""
    closed: list[str] = []
    bundles = {
        "good": onnx_bundle(tmp_path / "good", name="good", batch=None),
        "bad": onnx_bundle(tmp_path / "bad", name="bad", batch=None, golden_gain=0.1),
    }

    def load(manifest: Manifest, folder: Path):
        from edgekit.runtimes import open_runtime

        runtime = open_runtime(manifest, folder)
        real = runtime.close

        def close() -> None:
            closed.append(manifest.name)
            real()

        runtime.close = close  # type: ignore[method-assign]
        return runtime

    with pytest.raises(SelfTestError, match=r"bad 1\.0\.0 failed its self-test: scores: differs"):
        await CloudModels.open(["good", "bad"], lambda name: (bundles[name], tmp_path / name), threads=1, load=load)
    assert sorted(closed) == ["bad", "good"]
