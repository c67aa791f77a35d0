import numpy as np
import pytest
from onnx import helper

from converters.backends.layers import Layer, four_bit_default, layers_of, require_layers
from converters.graph.graph import Graph
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ConversionError
from tests.simulators.models import model_of


@pytest.fixture(scope="module")
def graph():
    """Two convolutions with a depthwise one between them, a product of two activations, and a dense layer."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w2"], ["b"], name="deep", group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "w3"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w4"], ["y"], name="last"),
    ]
    shapes = {"w1": (4, 1, 3, 3), "w2": (4, 1, 3, 3), "w3": (8, 4, 1, 1), "w4": (8, 3)}
    weights = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    return Graph(model_of(nodes, {"x": ["n", 1, 6, 6]}, {"y": ["n", 3]}, weights))


def test_layers_are_what_holds_weights(graph):
    """Layers are in order, with weights and multiply-adds; a node without a name has the name of its output."""
    assert layers_of(graph) == (
        Layer("first", "Conv", 36, 36 * 36, True),
        Layer("deep", "Conv", 36, 36 * 36, False),
        Layer("c", "Conv", 32, 32 * 36, True),
        Layer("last", "Gemm", 24, 24, True),
    )
    assert four_bit_default(layers_of(graph)) == ("c",)


def test_layers_that_are_not_there_are_named(graph):
    """The error also lists the layers of the model."""
    with pytest.raises(ConversionError, match="lost, gone") as caught:
        require_layers(Recipe("int8", float_layers=("lost", "last"), int4_layers=("gone",)), layers_of(graph))
    assert "first, deep, c, last" in caught.value.advice


def test_depthwise_layers_keep_8_bits(graph):
    """The error says which layers can have 4 bits."""
    with pytest.raises(ConversionError, match="4 bits for deep") as caught:
        require_layers(Recipe("int8", int4_layers=("c", "deep")), layers_of(graph))
    assert "first, c, last" in caught.value.advice
