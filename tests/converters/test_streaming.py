"""Conversions of a model with state: streams in data, candidates with their own state, and the bundle on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import convert
from converters.compare import compare_models
from device_agents.inference.service import InferenceService
from edgekit.bundle.golden import read_golden, self_test
from edgekit.bundle.manifest import Manifest, parse_manifest
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.state import client_inputs, client_outputs, state_links
from edgekit.errors import DataError, SettingsError
from edgekit.runtimes import open_runtime
from edgekit.serving.session.sequence import Sequence

FEATURES, UNITS, CLASSES, STEPS, STREAMS = 6, 8, 3, 10, 40


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(0, 1, (FEATURES, UNITS)).astype(np.float32),
        "u": (rng.normal(0, 1, (UNITS, UNITS)) / 4).astype(np.float32),
        "v": rng.normal(0, 2, (UNITS, CLASSES)).astype(np.float32),
        "axis": np.array([0], np.int64),
    }


def recurrent(batch: int | str = "n") -> onnx.ModelProto:
    """``hn`` = tanh(``x`` W + ``h`` U), ``scores`` = softmax(``hn`` V); the state is (1, N, 8)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], "from-input"),
        helper.make_node("Squeeze", ["h", "axis"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "u"], ["hu"], "from-state"),
        helper.make_node("Add", ["xw", "hu"], ["sum"], "sum"),
        helper.make_node("Tanh", ["sum"], ["state"], "tanh"),
        helper.make_node("MatMul", ["state", "v"], ["logits"], "logits"),
        helper.make_node("Softmax", ["logits"], ["scores"], "scores"),
        helper.make_node("Unsqueeze", ["state", "axis"], ["hn"], "give"),
    ]

    def info(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "recurrent",
        [info("x", [batch, FEATURES]), info("h", [1, batch, UNITS])],
        [info("scores", [batch, CLASSES]), info("hn", [1, batch, UNITS])],
        [numpy_helper.from_array(value, name) for name, value in weights().items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def without_batch() -> onnx.ModelProto:
    """The same model for one call: ``x`` (6,) and ``h`` (8,)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], "from-input"),
        helper.make_node("MatMul", ["h", "u"], ["hu"], "from-state"),
        helper.make_node("Add", ["xw", "hu"], ["sum"], "sum"),
        helper.make_node("Tanh", ["sum"], ["hn"], "tanh"),
        helper.make_node("MatMul", ["hn", "v"], ["logits"], "logits"),
        helper.make_node("Softmax", ["logits"], ["scores"], "scores"),
    ]
    sizes = {"x": FEATURES, "h": UNITS, "scores": CLASSES, "hn": UNITS}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name, size in sizes.items()}
    constants = [numpy_helper.from_array(value, name) for name, value in weights().items() if name != "axis"]
    graph = helper.make_graph(nodes, "flat", [infos["x"], infos["h"]], [infos["scores"], infos["hn"]], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def expected(x: np.ndarray) -> np.ndarray:
    """The float answers to one stream (steps, features), step by step."""
    h, answers, of = np.zeros(UNITS, np.float32), [], weights()
    for step in x:
        h = np.tanh(step @ of["w"] + h @ of["u"])
        e = np.exp(h @ of["v"] - (h @ of["v"]).max())
        answers.append(e / e.sum())
    return np.stack(answers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and data of STREAMS streams, with the float model's decisions as labels."""
    path = tmp_path_factory.mktemp("streaming")
    onnx.save(recurrent(), path / "listen.onnx")
    onnx.save(recurrent(1), path / "single.onnx")
    onnx.save(without_batch(), path / "flat.onnx")
    x = np.random.default_rng(1).normal(0, 1, (STREAMS, STEPS, FEATURES)).astype(np.float32)
    labels = np.stack([expected(one).argmax(axis=1) for one in x])
    ids = np.repeat(np.arange(STREAMS), STEPS)
    np.savez(path / "data.npz", x=x.reshape(-1, FEATURES), y=labels.reshape(-1), stream=ids)
    return path


def converted(folder: Path, out: Path, **options: Any) -> tuple[Any, Manifest, Path]:
    wanted = {
        "targets": ["x86-64"],
        "runtime": "onnxruntime",
        "prune": "dead",
        "state": {"hn": "h"},
        "data": folder / "data.npz",
    }
    model = options.pop("model", "listen")
    (report,) = convert(folder / f"{model}.onnx", output=out, **{**wanted, **options})
    bundle = out / report.bundle
    return report, parse_manifest((bundle / "manifest.json").read_bytes()), bundle


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Manifest, Path]:
    return converted(folder, tmp_path_factory.mktemp("bundles"), max_drop=0.5)


def test_a_bundle_hides_the_state_and_holds_one_golden_stream(bundle: tuple[Any, Manifest, Path]) -> None:
    """The device's self-test runs the stream; a runtime that forgets its state would fail it."""
    report, manifest, path = bundle
    (link,) = state_links(manifest.inputs)
    assert (link.spec.name, link.spec.shape, link.output) == ("h", (1, None, UNITS), "hn")
    assert [spec.name for spec in client_inputs(manifest.inputs)] == ["x"]
    assert [spec.name for spec in client_outputs(manifest.inputs, manifest.outputs)] == ["scores"]
    assert [one.name for one in report.outputs] == ["scores"]
    assert report.float_.quality.value == 1.0
    golden = (path / "golden.npz").read_bytes()
    inputs, answers = read_golden(golden)
    assert list(inputs) == ["x"]
    np.testing.assert_allclose(answers["scores"], expected(inputs["x"]), atol=1e-5)
    runtime = open_runtime(manifest, path)
    assert self_test(runtime, manifest, golden).passed
    runtime.close()


@pytest.mark.parametrize(
    ("model", "runtime"),
    [
        ("listen", "onnxruntime"),
        ("single", "onnxruntime"),
        ("flat", "onnxruntime"),
        pytest.param("listen", "litert", marks=pytest.mark.heavy),
    ],
)
async def test_the_agent_answers_streams_as_the_float_model_does(
    folder: Path, tmp_path: Path, model: str, runtime: str
) -> None:
    """Two streams, step by step and interleaved, through the service of the device; also where there is no batch."""
    _, manifest, path = converted(folder, tmp_path, model=model, runtime=runtime, recipe=Recipe())
    x = np.random.default_rng(5).normal(0, 1, (2, STEPS, FEATURES)).astype(np.float32)
    async with InferenceService() as service:
        await service.activate("listen", manifest, path)
        for i in range(STEPS):
            for key in (0, 1):
                place = Sequence(f"s{key}", start=i == 0)
                step = x[key, i] if model == "flat" else x[key, i : i + 1]
                scores = (await service.infer("listen", {"x": step}, sequence=place)).outputs["scores"]
                assert scores.ndim == step.ndim
                np.testing.assert_allclose(scores.reshape(-1), expected(x[key])[i], atol=1e-4)


def test_streams_are_the_samples_of_the_proof(bundle: tuple[Any, Manifest, Path]) -> None:
    """Whole streams are in one part, and the number of samples is that of streams."""
    report, _, _ = bundle
    assert report.split is not None
    assert report.split.proof % STEPS == report.split.choice % STEPS == 0
    quantized = [one for one in report.candidates if one.drop is not None]
    assert {one.drop.n for one in quantized} == {report.split.proof // STEPS}


def test_one_stream_proves_nothing_but_float_is_taken(folder: Path, tmp_path: Path) -> None:
    """Without ids all rows are one stream, which is cut; the float artifact passes by parity."""
    with np.load(folder / "data.npz") as data:
        np.savez(tmp_path / "one.npz", x=data["x"][:60], y=data["y"][:60])
    report, manifest, _ = converted(folder, tmp_path, data=tmp_path / "one.npz")
    assert manifest.recipe.precision in ("float32", "float16")
    assert {one.drop.n for one in report.candidates if one.drop is not None} == {1}


def test_without_data_streams_are_random(folder: Path, tmp_path: Path) -> None:
    """Only float candidates are made, and the golden samples are one stream of them."""
    path = converted(folder, tmp_path, data=None)[2]
    inputs, answers = read_golden((path / "golden.npz").read_bytes())
    assert inputs["x"].std() > 0.1
    np.testing.assert_allclose(answers["scores"], expected(inputs["x"]), atol=1e-5)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"gone": "h"}, "it has no output 'gone', its outputs are scores, hn"),
        ({"hn": "gone"}, "it has no input 'gone', its inputs are x, h"),
        ({"scores": "h"}, "input h is float32 [1, any, 8], output scores is float32 [any, 3]"),
        ({"hn": "x"}, "input x is float32 [any, 6]"),
    ],
)
def test_state_that_does_not_fit_is_refused(folder: Path, tmp_path: Path, state: dict[str, str], says: str) -> None:
    """The message has what was found, and the advice the likely option."""
    with pytest.raises(SettingsError) as caught:
        converted(folder, tmp_path, state=state)
    assert says in str(caught.value)
    assert caught.value.advice == "Give --state hn=h."


def test_state_in_data_is_refused(folder: Path, tmp_path: Path) -> None:
    """A state from elsewhere would not be the one that the model has on a device."""
    with np.load(folder / "data.npz") as data:
        np.savez(tmp_path / "state.npz", h=np.zeros((len(data["x"]), 1, UNITS), np.float32), **data)
    with pytest.raises(DataError, match="'h', which is state of the model: state is never in data"):
        converted(folder, tmp_path, data=tmp_path / "state.npz")


def test_a_bundle_and_its_source_are_compared_in_streams(folder: Path, bundle: tuple[Any, Manifest, Path]) -> None:
    """`edgekit compare` rolls the state of both."""
    (found,) = compare_models(folder / "listen.onnx", bundle[2], [folder / "data.npz"], metric=None, confidence=0.95)
    assert found.first == 1.0
    assert found.drop.n == STREAMS
