"""Rounding to 4 bits on the canonical graph."""

import numpy as np
import pytest
from onnx import helper

from converters.data.samples import Samples
from converters.graph.graph import Graph
from converters.passes.contract import run_pass
from converters.passes.round_weights import INT4_LEVELS, RoundWeights, gptq, is_rounded, nearest
from converters.passes.weights import dense_layers, tensors_of_rows
from edgekit.errors import ConversionError
from tests.simulators.models import model_of

ROWS = 48


def chain(seed=0):
    """Conv with strides and uneven pads, Relu, pointwise Conv without bias, pooling, MatMul, Add."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node(
            "Conv", ["x", "w1", "b1"], ["a"], name="first", pads=[1, 0, 1, 2], strides=[2, 1], dilations=[1, 2]
        ),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2"], ["c"], name="point"),
        helper.make_node("Relu", ["c"], ["s"], name="relu2"),
        helper.make_node("Conv", ["s", "w3"], ["d"], name="same", auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["d"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w4"], ["m"], name="last"),
        helper.make_node("Add", ["m", "b4"], ["y"], name="add"),
    ]
    shapes = {"w1": (8, 3, 3, 2), "b1": (8,), "w2": (16, 8, 1, 1), "w3": (16, 16, 3, 3), "w4": (16, 5), "b4": (5,)}
    weights = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    return Graph(model_of(nodes, {"x": [1, 3, 9, 8]}, {"y": [1, 5]}, weights))


@pytest.fixture(scope="module")
def samples():
    """Inputs with correlated channels, as in real data, from which GPTQ profits."""
    rng = np.random.default_rng(1)
    mixing = rng.normal(0, 1, (3, 2))
    hidden = rng.normal(0, 1, (ROWS * 2, 2, 9, 8))
    x = np.einsum("ck,nkhw->nchw", mixing, hidden) + rng.normal(0, 0.1, (ROWS * 2, 3, 9, 8))
    return Samples({"x": x.astype(np.float32)})


ALL = ("first", "point", "same", "last")


def test_a_layer_is_its_patches_times_its_matrix(samples):
    """patches @ matrix.T + bias equals ONNX Runtime, with strides, dilations and all paddings."""
    graph = chain()
    one = samples.take(slice(0, 1))
    for layer in dense_layers(graph):
        [values] = tensors_of_rows(graph, (layer.node.input[0], layer.output), one)
        x, y = values[layer.node.input[0]], values[layer.output]
        name = layer.bias_name()
        bias = graph.constants[name] if name else 0.0
        np.testing.assert_allclose(layer.features(x) @ layer.matrix.T + bias, layer.results(y), atol=1e-5)


def test_rounded_layers_are_integers_that_reach_the_largest(samples):
    """Only the named layers are rounded; the input graph and the interface stay."""
    graph = chain()
    result = run_pass(RoundWeights(("point", "last"), samples), graph)
    assert result.modified
    assert {layer.name: is_rounded(layer.matrix) for layer in dense_layers(result.graph)} == {
        "first": False,
        "point": True,
        "same": False,
        "last": True,
    }


def test_rounding_by_samples_answers_nearer_than_rounding_each_weight(samples):
    """GPTQ is much closer than nearest rounding, on new rows."""
    graph = chain()
    seen, unseen = samples.take(slice(0, ROWS)), samples.take(slice(ROWS, None))
    expected = graph.run(unseen.inputs)["y"]

    def error(given):
        found = run_pass(RoundWeights(ALL, given), graph).graph.run(unseen.inputs)["y"]
        return float(((found - expected) ** 2).mean())

    assert error(seen) < 0.5 * error(None)


def test_weights_that_two_layers_share_are_rounded_once(samples):
    """Both layers read the same rounded weights."""
    graph = chain()
    shared = Graph(type(graph.model).FromString(graph.to_bytes()))
    shared.model.graph.node.insert(5, helper.make_node("Conv", ["d", "w3"], ["d2"], name="again", pads=[1, 1, 1, 1]))
    shared.model.graph.node[6].input[0] = "d2"
    result = run_pass(RoundWeights(("same",), samples), shared).graph
    first, again = (layer.matrix for layer in dense_layers(result) if layer.name in ("same", "again"))
    assert is_rounded(first)
    np.testing.assert_array_equal(first, again)


def test_layer_that_is_not_there_is_named():
    """An unknown layer name is an error, so that no choice is silently lost."""
    with pytest.raises(ConversionError, match="no dense layer of group 1 is called lost"):
        run_pass(RoundWeights(("point", "lost")), chain())


@pytest.mark.parametrize("rows", [1, 5])
def test_few_samples_and_dead_inputs_do_no_harm(rows, samples):
    """Singular moments are damped, and a channel of zeros stays zero."""
    graph = chain()
    x = samples.take(slice(0, rows)).inputs["x"].copy()
    x[:, 1] = 0
    found = run_pass(RoundWeights(ALL, Samples({"x": x})), graph).graph
    assert np.isfinite(found.run(samples.inputs)["y"]).all()
    matrix = np.zeros((2, 4))
    matrix[1] = [1, -2, 0.5, 0]
    rounded = gptq(matrix, np.eye(4))
    np.testing.assert_array_equal(rounded[0], 0)
    assert is_rounded(rounded)


def test_nearest_rounding_gives_up_outliers_for_the_many():
    """An outlier is clipped if that lowers the squared error; scales are per channel."""
    rng = np.random.default_rng(2)
    matrix = rng.normal(0, 0.1, (4, 400))
    matrix[:, 0] = 0.55
    scales = np.abs(nearest(matrix)).max(axis=1) / INT4_LEVELS
    assert (scales < 0.55 / INT4_LEVELS).all()
    plain = np.rint(matrix / (0.55 / INT4_LEVELS)) * (0.55 / INT4_LEVELS)
    assert ((nearest(matrix) - matrix) ** 2).sum() < ((plain - matrix) ** 2).sum()
