"""Channels whose weights are tiny beside their bias, in static int8, with real quantizers and runtimes."""

import numpy as np
import onnx
import pytest

from converters.backends import ConversionContext
from converters.backends.litert import LiteRTBackend
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.backends.onnx_tensorrt import OnnxTensorRTBackend
from converters.backends.tflite.biases import require_biases, wider_weights
from converters.backends.tflite.facts import pieces_of
from converters.backends.tflite.reader import TFLITE_WEIGHTED, buffer_content, operator_name, parse_tflite
from converters.candidates.candidate import open_artifact, run_rows
from converters.data.samples import Samples
from converters.graph.graph import Graph
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ConversionError
from tests.simulators import models
from tests.simulators.conv_models import separable

pytestmark = pytest.mark.heavy

NEAR = 0.01  # of scores in steps of 1/256
FADED_IN_ORDER = ("w0", "wd", "wp", "wd", "wp", "w9")
FADED = {"w0": (1, 5), "wd": (2,), "wp": (0, 3), "w9": (1,)}  # channels by weights; of all kinds of layers


def faded(share=1e-12):
    """A network in which the weights of some channels are scaled by `share`, and their biases hold the usual output."""
    graph = separable()
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        for weights, channels in FADED.items():
            if tensor.name == weights:
                values[list(channels)] *= share
            elif tensor.name == f"b{weights[1:]}":
                values[list(channels)] += 0.7
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return Graph(model)


@pytest.fixture(scope="module")
def samples():
    images, _ = models.patterns(60)
    return Samples({"image": images})


@pytest.fixture(scope="module")
def answered(child, samples, tmp_path_factory):
    """Build static int8 of a network with a backend: (artifact, scores, the float model's scores, the context)."""

    def answered(graph, backend, recipe):
        context = ConversionContext(graph, graph.with_batch(1), samples, child, tmp_path_factory.mktemp("biases"))
        artifact = backend(context).build(recipe)
        runtime = open_artifact(artifact, tmp_path_factory.mktemp("run"))
        try:
            return artifact, run_rows(runtime, samples.inputs)["scores"], graph.run(samples.inputs)["scores"], context
        finally:
            runtime.close()

    return answered


@pytest.mark.parametrize("share", [1e-6, 1e-12, 0.0])
@pytest.mark.parametrize("per_channel", [True, False])
def test_litert_answers_as_the_float_model_does(share, per_channel, answered, tmp_path):
    """Both kinds of convolutions and a dense layer answer as in float, and the delegate runs one piece."""
    recipe = Recipe("int8", per_channel=per_channel)
    artifact, found, expected, _ = answered(faded(share), LiteRTBackend, recipe)
    assert np.abs(found - expected).max() < NEAR
    (tmp_path / "m.tflite").write_bytes(artifact.data)
    sound, _, _, _ = answered(separable(), LiteRTBackend, recipe)
    (tmp_path / "sound.tflite").write_bytes(sound.data)
    assert pieces_of(tmp_path / "m.tflite") == pieces_of(tmp_path / "sound.tflite")


def test_layers_of_4_bits_are_widened_too(answered):
    """4-bit layers are widened too, with their own number of levels."""
    _, found, expected, _ = answered(faded(), LiteRTBackend, Recipe("int8", int4_layers=("point1", "point2")))
    assert np.abs(found - expected).max() < 0.1


@pytest.mark.parametrize(("backend", "symmetric"), [(OnnxCpuBackend, False), (OnnxTensorRTBackend, True)])
def test_the_other_runtimes_bear_such_channels(backend, symmetric, answered):
    """ONNX Runtime's quantizer widens scales itself, and TensorRT has float biases."""
    _, found, expected, _ = answered(faded(), backend, Recipe("int8", symmetric=symmetric))
    assert np.abs(found - expected).max() < NEAR


def test_without_wider_scales_the_answers_are_wrong(answered, monkeypatch):
    """Without wider scales the answers are wrong, and the check names the layers."""
    monkeypatch.setattr("converters.backends.litert.wider_weights", lambda before, after: {})
    artifact, found, expected, context = answered(faded(), LiteRTBackend, Recipe("int8"))
    assert np.abs(found - expected).max() > 10 * NEAR
    before = context.lowered(context.fixed).path.read_bytes()
    ranges = wider_weights(before, artifact.data)
    assert sum(int((one["max"] > 0).sum()) for one in ranges.values()) >= len(ranges) >= 4
    with pytest.raises(ConversionError, match="biases do not fit 32 bits"):
        require_biases(before, artifact.data)


def test_sound_networks_stay_as_they_are(answered):
    """No scale moves where every bias fits."""
    artifact, _, _, context = answered(separable(), LiteRTBackend, Recipe("int8"))
    assert wider_weights(context.lowered(context.fixed).path.read_bytes(), artifact.data) == {}


def test_other_channels_keep_their_scales_and_integers(answered, monkeypatch):
    """Other channels keep scales and integers bit by bit; only the scaled channels have wider scales."""
    widened, _, _, _ = answered(faded(1e-6), LiteRTBackend, Recipe("int8"))
    monkeypatch.setattr("converters.backends.litert.wider_weights", lambda before, after: {})
    plain, _, _, _ = answered(faded(1e-6), LiteRTBackend, Recipe("int8"))
    for name, mine, theirs in zip(FADED_IN_ORDER, weights_of(widened), weights_of(plain), strict=True):
        scales, integers = zip(mine, theirs, strict=True)
        moved = [int(i) for i in np.flatnonzero(scales[0] != scales[1])]
        assert moved == list(FADED[name])
        assert np.all(scales[0][moved] > scales[1][moved])
        kept = np.delete(np.arange(len(scales[0])), moved)
        np.testing.assert_array_equal(integers[0][kept], integers[1][kept])


def weights_of(artifact):
    """(scales, integers) of each layer, both with channels along the first axis."""
    model = parse_tflite(artifact.data)
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if operator_name(model, operator) in TFLITE_WEIGHTED:
            tensor = graph.tensors[operator.inputs[1]]
            content = buffer_content(model.buffers[tensor.buffer], artifact.data)
            integers = np.frombuffer(content, np.int8).reshape(tensor.shape)
            yield (
                np.asarray(tensor.quantization.scale),
                np.moveaxis(integers, tensor.quantization.quantizedDimension, 0),
            )
