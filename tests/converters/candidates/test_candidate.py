import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from converters.backends import Artifact, ConversionContext
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.candidates.candidate import advice_of, make_candidate
from converters.candidates.evidence import Evidence
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.frontends.onnx import canonical
from converters.graph.graph import Graph
from converters.quality.judging import JudgedOutput
from converters.quality.measured import Budget
from converters.quality.metrics import find_metric
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import builtin_targets, find_target
from edgekit.errors import RuntimeLoadError
from tests.simulators import models


class DamagingBackend:
    """A backend that makes a good float32 artifact and damages the artifacts of given recipes."""

    name = "damaging"

    def __init__(self, graph, folder, damaged):
        self._inner = OnnxCpuBackend(ConversionContext(graph, graph.with_batch(1), None, TensorFlowProcess(), folder))
        self._damaged = damaged

    def build(self, recipe: Recipe) -> Artifact:
        good = self._inner.build(Recipe())
        return msgspec.structs.replace(good, content=b"damaged") if recipe.precision in self._damaged else good


@pytest.fixture
def make(tmp_path):
    """Make one candidate of a classifier by a backend that damages some precisions."""
    graph = canonical(models.classifier(), "test")
    images, labels = models.patterns(50)
    samples = Samples({"image": images}, labels).with_labels_of("scores")
    answers = graph.run(samples.inputs)
    judged = (JudgedOutput("scores", find_metric(None, labels)),)
    evidence = Evidence(samples, samples, answers, answers, judged, "scores", "scores")

    def make(precision, *, damaged):
        return make_candidate(
            DamagingBackend(graph, tmp_path, damaged),
            Recipe(precision),
            graph=graph,
            profile=find_target("raspberry-pi-4", builtin_targets()),
            evidence=evidence,
            budget=Budget(),
            folder=tmp_path,
        )

    return make


def test_artifact_that_cannot_be_loaded_is_a_fault_of_its_candidate(make):
    """A quantized file that the runtime refuses is a fault of its candidate and does not end the conversion."""
    found = make("int8", damaged={"int8"})
    assert "cannot be loaded by ONNX Runtime" in found.measured.fault
    assert (found.artifact, found.quality, found.measured.bytes) == (None, None, 0)


def test_float_artifact_that_cannot_be_loaded_ends_the_conversion(make):
    """float32 is the reference, so its fault is an error."""
    with pytest.raises(RuntimeLoadError):
        make("float32", damaged={"float32"})


def test_sound_candidate_is_measured(make):
    """A float32 artifact has quality, drop and parity, and the answers of the graph."""
    found = make("float32", damaged=set())
    assert found.measured.same
    assert np.isclose(found.measured.drop.value, 0.0)
    assert found.parity.agreement == 1.0


def test_writes_that_meet_are_named_where_answers_differ():
    """ONNX leaves open which write stays, and exporters drop the addition below opset 16."""
    for reduction, named in (("none", True), ("add", False)):
        node = helper.make_node("ScatterND", ["x", "i", "u"], ["y"], name="put", reduction=reduction)
        graph = helper.make_graph(
            [node],
            "writes",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
                helper.make_tensor_value_info("i", TensorProto.INT64, ["n", 2, 2]),
                helper.make_tensor_value_info("u", TensorProto.FLOAT, ["n", 2]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        assert ("Layer put writes" in advice_of(Graph(model))) == named
