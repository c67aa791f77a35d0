"""Outputs that operators of the same graph read as float, in static int8 with the real quantizer and runtime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters.backends import ConversionContext
from converters.backends.litert import LiteRTBackend
from converters.backends.tflite.outputs import with_named_outputs
from converters.backends.tflite.reader import parse_tflite
from converters.candidates.candidate import open_artifact, run_rows
from converters.data.samples import Samples
from converters.graph.graph import Graph
from edgekit.bundle.recipe import Recipe
from tests.simulators import models
from tests.simulators.conv_models import separable

pytestmark = pytest.mark.heavy


def with_label(graph):
    """The network with the index of the best of its scores as a second output."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.node.append(helper.make_node("ArgMax", ["scores"], ["label"], name="best", axis=1, keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    return Graph(model)


def test_an_output_that_argmax_reads_is_given_out(child, tmp_path):
    """Both outputs come from one int8 file, and the label is that of the scores; the signature names what is given."""
    graph, images = with_label(separable()), models.patterns(60)[0]
    samples = Samples({"image": images})
    context = ConversionContext(graph, graph.with_batch(1), samples, child, tmp_path)
    artifact = LiteRTBackend(context).build(Recipe("int8"))
    runtime = open_artifact(artifact, tmp_path / "run")
    try:
        answers = run_rows(runtime, samples.inputs)
    finally:
        runtime.close()
    assert np.abs(answers["scores"] - graph.run(samples.inputs)["scores"]).max() < 0.05
    np.testing.assert_array_equal(answers["label"], answers["scores"].argmax(axis=1))
    model = parse_tflite(artifact.data)
    named = {output.tensorIndex for output in model.signatureDefs[0].outputs}
    assert named == set(model.subgraphs[0].outputs.tolist())
    assert with_named_outputs(artifact.data) is artifact.data
