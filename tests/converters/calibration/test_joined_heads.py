"""Detectors with one output for boxes in pixels and scores from 0 to 1, in static int8 on every runtime."""

import asyncio
import http.client
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from converters.backends import ConversionContext, backend_for
from converters.calibration import joins
from converters.candidates.candidate import open_artifact, run_rows
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
from edgekit.bundle.bindings import Joined
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import builtin_targets
from edgekit.runtimes import open_runtime
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.oip import codec as oip
from tests.simulators import headed_models

KERAS = """
import sys, keras
from keras import layers
keras.utils.set_random_seed(1)
image = keras.Input((32, 32, 3), name="image")
x = layers.Conv2D(16, 3, strides=4, padding="same", activation="relu")(image)
x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
wide = keras.initializers.RandomNormal(stddev=0.8)
boxes = layers.Conv2D(4, 1, activation="sigmoid", kernel_initializer=wide)(x)
boxes = layers.Rescaling(320.0)(layers.Reshape((16, 4))(boxes))
scores = layers.Conv2D(3, 1, activation="sigmoid", kernel_initializer=wide)(x)
found = layers.Concatenate(name="detections")([boxes, layers.Reshape((16, 3))(scores)])
keras.Model(image, found).save(sys.argv[1])
"""
ROWS = 32


def rows_of(graph, rows=ROWS):
    shape = graph.inputs[0].shape[1:]
    return {"image": np.random.default_rng(1).normal(0, 1, (rows, *shape)).astype(np.float32)}


@pytest.fixture
def answers(tmp_path):
    """Build int8 for a target: (artifact, mean error of boxes in pixels, mean error of scores)."""

    def answers(graph, target, runtime, child, recipe=Recipe("int8")):  # noqa: B008 - frozen
        inputs = rows_of(graph)
        context = ConversionContext(graph, graph.with_batch(1), Samples(inputs), child, tmp_path)
        artifact = backend_for(builtin_targets()[target], runtime, context).build(recipe)
        opened = open_artifact(artifact, tmp_path / "run")
        try:
            found = run_rows(opened, inputs)["detections"]
        finally:
            opened.close()
        error = np.abs(found - graph.run(inputs)["detections"])
        return artifact, error[..., :4].mean(), error[..., 4:].mean()

    return answers


@pytest.mark.parametrize("make", [headed_models.joined_detector, headed_models.levels])
def test_onnx_runtime_keeps_scores(make, answers, monkeypatch):
    """The output is joined in float; with one scale for boxes and scores, every score was 0 or 1.25."""
    artifact, boxes, scores = answers(make(), "raspberry-pi-4", "onnxruntime", TensorFlowProcess())
    assert (boxes < 3, scores < 0.01) == (True, True)
    assert not any(isinstance(binding.joined, Joined) for binding in artifact.outputs)
    monkeypatch.setattr(joins, "LEAST_STEPS", 0)
    _, _, shared = answers(make(), "raspberry-pi-4", "onnxruntime", TensorFlowProcess())
    assert shared > 0.15


def test_a_layer_beside_does_not_round_what_others_read(tmp_path, monkeypatch):
    """On ONNX Runtime a layer reads a quantized copy of a join; the output beside it keeps float values."""
    graph = headed_models.joined_features()
    inputs, errors = rows_of(graph), []
    for least in (joins.LEAST_STEPS, 0):
        monkeypatch.setattr(joins, "LEAST_STEPS", least)
        context = ConversionContext(graph, graph.with_batch(1), Samples(inputs), TensorFlowProcess(), tmp_path)
        artifact = backend_for(builtin_targets()["x86-64"], "onnxruntime", context).build(Recipe("int8"))
        opened = open_artifact(artifact, tmp_path / "run")
        found = run_rows(opened, inputs)
        opened.close()
        errors.append(float(np.abs(found["both"] - graph.run(inputs)["both"])[:, 16:].max()))
        nodes = onnx.load_model_from_string(artifact.data).graph.node
        makers = {name: node.op_type for node in nodes for name in node.output}
        read = [makers[name] for node in nodes if node.op_type == "Conv" for name in node.input[:2]]
        assert read == ["DequantizeLinear"] * 8
    assert errors[0] < 0.1 * errors[1]


def test_tensorrt_never_shared_a_scale_here(answers, monkeypatch):
    """Heads and joins are float in TensorRT files for any ranges, so nothing is split."""
    recipe = Recipe("int8", symmetric=True)
    for least in (joins.LEAST_STEPS, 0):
        monkeypatch.setattr(joins, "LEAST_STEPS", least)
        graph = headed_models.joined_detector()
        artifact, boxes, scores = answers(graph, "jetson-orin", "onnxruntime", TensorFlowProcess(), recipe)
        assert (boxes < 3, scores < 0.01) == (True, True)
        model = onnx.load_model_from_string(artifact.data)
        makers = {name: node.op_type for node in model.graph.node for name in node.output}
        [join] = [node for node in model.graph.node if node.op_type == "Concat"]
        assert not {"QuantizeLinear", "DequantizeLinear"} & {makers[name] for name in join.input}


@pytest.mark.heavy
@pytest.mark.parametrize("target", ["raspberry-pi-4", "coral-edgetpu", "ethos-u55"])
def test_litert_gives_boxes_and_scores_by_scales_of_their_own(target, child, answers, monkeypatch):
    """The file has two int8 tensors and clients see one float output; with one scale every score was 0 or 1.25."""
    artifact, boxes, scores = answers(headed_models.joined_detector(), target, "litert", child)
    assert (boxes < 3, scores < 0.01) == (True, True)
    [binding] = artifact.outputs
    assert binding.spec.shape == (None, 64, 7)
    assert [part.artifact.dtype.value for part in binding.parts] == ["int8", "int8"]
    assert binding.parts[0].scale > 100 * binding.parts[1].scale
    monkeypatch.setattr(joins, "LEAST_STEPS", 0)
    artifact, _, shared = answers(headed_models.joined_detector(), target, "litert", child)
    assert shared > 0.15
    assert len(artifact.outputs[0].parts) == 1


@pytest.mark.heavy
def test_levels_come_out_as_two_tensors_on_litert(child, answers):
    """Boxes of both levels share a tensor, and scores of both levels share another."""
    artifact, boxes, scores = answers(headed_models.levels(), "raspberry-pi-4", "litert", child)
    assert (boxes < 3, scores < 0.01) == (True, True)
    assert len(artifact.outputs[0].parts) == 2


@pytest.mark.heavy
@pytest.mark.parametrize("precision", ["float32", "float16", "int8-dynamic", "int8-weights"])
def test_float_outputs_stay_whole(precision, child, answers):
    """A float output is not split."""
    graph = headed_models.joined_detector()
    artifact, _, scores = answers(graph, "raspberry-pi-4", "litert", child, Recipe(precision))
    assert scores < 0.01
    assert not any(isinstance(binding.joined, Joined) for binding in artifact.outputs)


# TensorFlow starts to save the network, then three targets are converted: about 15 s.
@pytest.mark.heavy
def test_a_keras_detector_is_served_with_one_output(child, tmp_path):
    """From .keras to a response over HTTP: the source model's one output, within 8 bits of the float model."""
    subprocess.run([sys.executable, "-c", KERAS, str(tmp_path / "m.keras")], check=True, capture_output=True)
    x = np.random.default_rng(1).normal(0, 1, (200, 32, 32, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    plan = make_plan(
        tmp_path / "m.keras",
        ConversionOptions(
            targets=["raspberry-pi-4", "coral-edgetpu"],
            data=tmp_path / "data.npz",
            recipe=Recipe("int8"),
            max_drop=1e6,
            accept_unproven=True,
            output=tmp_path,
            name="detector",
        ),
    )
    reports = run_plan(plan, child=child)
    expected = exact(tmp_path, plan, child, x[:3])
    for report in reports:
        assert all(0 <= one.device.steps <= 10 for one in report.parity if one.device)  # by each part's own scale
        folder = Path(report.bundle)
        manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
        assert [len(binding.parts) for binding in manifest.outputs] == [2]
        found = asyncio.run(served(manifest, folder, x[:3]))
        assert found.shape == (3, 16, 7)
        assert np.abs(found - expected)[..., :4].mean() < 3
        assert np.abs(found - expected)[..., 4:].mean() < 0.01


def exact(folder, plan, child, x):
    """The float bundle's answers."""
    plan = make_plan(
        plan.model, ConversionOptions(targets=["x86-64"], recipe=Recipe(), output=folder / "float", name="detector")
    )
    [report] = run_plan(plan, child=child)
    manifest = parse_manifest((Path(report.bundle) / MANIFEST_NAME).read_bytes())
    runtime = open_runtime(manifest, Path(report.bundle))
    try:
        [answer] = runtime.run({manifest.inputs[0].spec.name: x}).values()
        return answer
    finally:
        runtime.close()


async def served(manifest, folder, x):
    """The one output that an HTTP client gets."""
    models = await CloudModels.open(["m"], lambda name: (manifest, folder), threads=1)
    request = oip.encode_request({manifest.inputs[0].spec.name: x})

    def ask(url):
        connection = http.client.HTTPConnection(*url.removeprefix("http://").split(":"))
        connection.request("POST", "/v2/models/m/infer", request.body, request.headers)
        reply = connection.getresponse()
        body = reply.read()
        assert reply.status == 200, body
        connection.close()
        [answer] = oip.parse_response(body, oip.header_length(reply.headers[oip.HEADER])).outputs.values()
        return answer

    async with serve(App(models, max_request_bytes=2**20), http="127.0.0.1:0") as bound:
        return await asyncio.to_thread(ask, bound.url)
