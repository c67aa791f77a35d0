"""Equalization of channels and correction of biases, on the canonical graph and in ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from converters.backends import ConversionContext
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.candidates.candidate import open_artifact, run_rows
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.graph.graph import Graph
from converters.passes import Simplify
from converters.passes.contract import run_pass
from converters.passes.correct_bias import CorrectBias, rounded_8
from converters.passes.equalize import Equalize, pairs
from converters.passes.weights import dense_layers, with_layer
from edgekit.bundle.recipe import Recipe
from tests.simulators import dense_models
from tests.simulators.models import model_of


def badly_ranged(seed=0, spread=3.0):
    """An autoencoder with hidden channels that differ by orders of magnitude, as after unnormalized training."""
    graph = dense_models.autoencoder(seed)
    rng = np.random.default_rng(seed + 1)
    for first, second in (("dense0", "dense1"), ("dense1", "dense2"), ("dense3", "dense4")):
        layers = {layer.name: layer for layer in dense_layers(graph)}
        factors = np.exp(rng.normal(0, spread / 2, len(layers[first].matrix)))
        bias = graph.constants[layers[first].bias_name()]
        graph = with_layer(graph, layers[first], layers[first].matrix * factors[:, None], bias * factors)
        layer = next(layer for layer in dense_layers(graph) if layer.name == second)
        graph = with_layer(graph, layer, layer.matrix / factors, None)
    return graph


def images(*, between=("Relu",), group=1, seed=0):
    """Two Convs with `between` in the middle (``Relu6`` is a Clip), then global pooling, Flatten and Gemm."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.normal(0, 1, (8, 2, 3, 3)) * np.exp(rng.normal(0, 1.5, (8, 1, 1, 1))),
        "b1": rng.normal(0, 0.1, 8),
        "w2": rng.normal(0, 1, (8, 8 // group, 3, 3)),
        "b2": rng.normal(0, 0.1, 8),
        "w3": rng.normal(0, 1, (8, 3)),
        "zero": np.array(0.0),
        "six": np.array(6.0),
    }
    nodes, last = [helper.make_node("Conv", ["x", "w1", "b1"], ["a0"], name="one", pads=[1] * 4)], "a0"
    for i, kind in enumerate(between, start=1):
        if kind == "Relu6":
            nodes.append(helper.make_node("Clip", [last, "zero", "six"], [f"a{i}"], name=f"clip{i}"))
        elif kind == "MaxPool":
            nodes.append(helper.make_node(kind, [last], [f"a{i}"], name=f"pool{i}", kernel_shape=[2, 2]))
        else:
            nodes.append(helper.make_node(kind, [last], [f"a{i}"], name=f"act{i}"))
        last = f"a{i}"
    nodes += [
        helper.make_node("Conv", [last, "w2", "b2"], ["c"], name="two", group=group, pads=[1] * 4),
        helper.make_node("LeakyRelu", ["c"], ["r"], name="leaky"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], name="three"),
    ]
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    return Graph(model_of(nodes, {"x": [1, 2, 6, 6]}, {"y": [1, 3]}, weights))


def names(graph):
    return [(pair.first.name, pair.second.name) for pair in pairs(graph)]


X = np.random.default_rng(5).normal(0, 1, (40, 2, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("between", [("Relu",), ("Relu", "MaxPool"), ()], ids="-".join)
@pytest.mark.parametrize("with_samples", [True, False])
def test_answers_stay_and_channels_become_even(group, between, with_samples):
    """Through Relu and pooling, for ordinary and depthwise layers, with samples or weights only."""
    graph = images(between=between, group=group)
    assert names(graph) == [("one", "two"), ("two", "three")]
    result = run_pass(Equalize(Samples({"x": X}) if with_samples else None), graph)
    assert result.modified
    before, after = graph.run({"x": X})["y"], result.graph.run({"x": X})["y"]
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * np.abs(before).max())

    def unevenness(graph):
        spread = np.abs(dense_layers(graph)[0].matrix).max(axis=1)
        return spread.max() / spread.min()

    if not with_samples:
        assert unevenness(result.graph) < 0.5 * unevenness(graph)


@pytest.mark.parametrize("between", [("Relu6",), ("Relu", "Sigmoid"), ("Softplus",)], ids="-".join)
def test_what_does_not_commute_is_left_alone(between):
    """A pair with a bound or a curve in between is not changed; the next pair is."""
    assert names(images(between=between)) == [("two", "three")]


def test_branches_and_outputs_are_left_alone():
    """A tensor with another reader, or that is an output, keeps its scale."""
    graph = images()
    model = type(graph.model).FromString(graph.to_bytes())
    model.graph.output.append(helper.make_tensor_value_info("a1", 1, [1, 8, 6, 6]))
    assert names(Graph(model)) == [("two", "three")]
    model = type(graph.model).FromString(graph.to_bytes())
    model.graph.node.append(helper.make_node("GlobalAveragePool", ["a1"], ["extra"], name="extra"))
    model.graph.output.append(helper.make_tensor_value_info("extra", 1, [1, 8, 1, 1]))
    assert names(Graph(model)) == [("two", "three")]


def branches(*, dense=False, inputs=("ra", "rb", "x"), ratio=100.0, axis=1):
    """Two layers, the first with a range `ratio` times as wide, joined with the input, and a layer after them."""
    rng = np.random.default_rng(3)
    kernel = () if dense else (3, 3)
    widths = {"ra": 8, "rb": 4, "x": 2}
    weights = {
        "wa": rng.normal(0, ratio, (8, 2, *kernel)),
        "ba": rng.normal(0, 0.1 * ratio, 8),
        "wb": rng.normal(0, 1, (4, 2, *kernel)),
        "wc": np.concatenate([rng.normal(0, (1 / ratio) ** (n == "ra"), (6, widths[n], *kernel)) for n in inputs], 1),
        "wd": rng.normal(0, 1, (3, 6, *kernel)),
    }
    how = {"transB": 1} if dense else {"pads": [1] * 4}
    layer = "Gemm" if dense else "Conv"
    nodes = [
        helper.make_node(layer, ["x", "wa", "ba"], ["a"], name="a", **how),
        helper.make_node("Relu", ["a"], ["ra"], name="relu_a"),
        helper.make_node(layer, ["x", "wb"], ["b"], name="b", **how),
        helper.make_node("Relu", ["b"], ["rb"], name="relu_b"),
        helper.make_node("Concat", list(inputs), ["all"], name="join", axis=axis),
        helper.make_node(layer, ["all", "wc"], ["c"], name="c", **how),
        helper.make_node("Relu", ["c"], ["rc"], name="relu_c"),
        helper.make_node(layer, ["rc", "wd"], ["y"], name="d", **how),
    ]
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    place = [] if dense else [6, 6]
    return Graph(model_of(nodes, {"x": ["batch", 2, *place]}, {"y": ["batch", 3, *place]}, weights))


@pytest.mark.parametrize("with_samples", [True, False])
@pytest.mark.parametrize("graph", [branches(), branches(axis=-3), branches(dense=True), branches(dense=True, axis=-1)])
def test_branches_that_are_joined_are_evened_out_each(graph, with_samples):
    """Joined inputs that no layer makes keep their scale; outputs do not change."""
    x = X if len(graph.inputs[0].shape) == 4 else X[:, :, 0, 0]
    assert names(graph) == [("a", "c"), ("b", "c"), ("c", "d")]
    result = run_pass(Equalize(Samples({"x": x}) if with_samples else None), graph)
    before, after = graph.run({"x": x})["y"], result.graph.run({"x": x})["y"]
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * np.abs(before).max())
    wide, narrow = (np.abs(layer.matrix).max() for layer in dense_layers(result.graph)[:2])
    assert 0.1 < wide / narrow < 10


def test_a_branch_that_is_joined_twice_or_along_another_axis_is_left_alone():
    """The reader would need two factors for it."""
    assert names(branches(inputs=("ra", "rb", "ra"))) == [("b", "c"), ("c", "d")]
    graph = branches(inputs=("ra", "rb"))
    model = type(graph.model).FromString(graph.to_bytes())
    model.graph.node[4].attribute[0].i = 2  # along the rows: no channels any more, and no model that runs
    assert names(Graph(model)) == [("c", "d")]


def test_joined_branches_of_unlike_ranges_are_cured(error):
    """The narrow branch gets few steps of the shared scale before, and all steps after equalization."""
    graph = branches(inputs=("ra", "rb"))
    rows = Samples({"x": X[:20]}), Samples({"x": X[20:]})
    plain = error(graph, Recipe("int8"), *rows)
    assert error(graph, Recipe("int8", equalize=True), *rows) < 0.05 * plain


def test_dead_channels_stay_as_they_are():
    """Channels with zero weights keep the factor 1."""
    graph = images()
    layer = dense_layers(graph)[0]
    matrix = layer.matrix
    matrix[3] = 0
    graph = with_layer(graph, layer, matrix, np.zeros(8))
    found = run_pass(Equalize(Samples({"x": X})), graph).graph
    assert np.isfinite(found.run({"x": X})["y"]).all()
    np.testing.assert_array_equal(dense_layers(found)[0].matrix[3], 0)


@pytest.fixture
def error(tmp_path):
    """The mean squared error of a recipe of a graph through ONNX Runtime."""

    def error(graph, recipe, fit, test):
        backend = OnnxCpuBackend(ConversionContext(graph, graph.with_batch(1), fit, TensorFlowProcess(), tmp_path))
        runtime = open_artifact(backend.build(recipe), tmp_path)
        found = run_rows(runtime, test.inputs)["y"]
        return float(((found - graph.run(test.inputs)["y"]) ** 2).mean())

    return error


def _two():
    x = np.random.default_rng(6).normal(0, 1, (200, 32)).astype(np.float32)
    return Samples({"x": x[:100]}), Samples({"x": x[100:]})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_badly_ranged_activations_are_cured(seed, error):
    """Static int8 of an uneven autoencoder loses much less after equalization, on new rows."""
    graph = badly_ranged(seed)
    plain = error(graph, Recipe("int8"), *_two())
    assert error(graph, Recipe("int8", equalize=True), *_two()) < 0.2 * plain


def test_corrected_biases_take_the_shift_back():
    """With corrected biases, the mean of each output is the float model's; weights do not change."""
    graph = dense_models.autoencoder(4)
    x = np.abs(np.random.default_rng(2).normal(1, 1, (64, 32))).astype(np.float32)
    result = run_pass(CorrectBias(Samples({"x": x}), per_channel=False), graph)
    assert result.modified

    def rounded(graph):
        for layer in dense_layers(graph):
            graph = with_layer(graph, layer, rounded_8(layer.matrix, per_channel=False), None)
        return graph.run({"x": x})["y"].mean(axis=0)

    expected = graph.run({"x": x})["y"].mean(axis=0)
    before, after = np.abs(rounded(graph) - expected).max(), np.abs(rounded(result.graph) - expected).max()
    assert before > 1e-3
    assert after < 0.01 * before


def test_layers_without_a_bias_get_one():
    """A Conv or Gemm without bias gets one; a MatMul cannot."""
    graph = images()
    assert dense_layers(graph)[2].bias_name() is None
    found = run_pass(CorrectBias(Samples({"x": X}), per_channel=False), graph).graph
    assert dense_layers(found)[2].bias_name() is not None
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    bare = Graph(model_of(nodes, {"x": [1, 3]}, {"y": [1, 2]}, {"w": np.eye(3, 2, dtype=np.float32)}))
    assert not run_pass(CorrectBias(Samples({"x": np.ones((4, 3), np.float32)})), bare).modified


def test_recipe_with_everything_is_built(error):
    """A graph that is equalized, rounded to 4 bits and corrected is still close to the float model."""
    graph = badly_ranged(1)
    names = ("dense1", "dense3")
    for kind in ("int8", "int8-dynamic", "int8-weights"):
        recipe = Recipe(kind, equalize=True, correct_bias=True, int4_layers=names, rounding="gptq", ranges="mse")
        plain = Recipe(kind, int4_layers=names)
        assert error(graph, recipe, *_two()) < error(graph, plain, *_two())


def test_single_number_that_is_added_to_all_channels_becomes_one_bias_for_each():
    """onnxslim merges MatMul and Add of an epsilon into a Gemm with a bias of no axes."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="mel"),
        helper.make_node("Add", ["m", "tiny"], ["y"], name="add"),
    ]
    weights = {"w": np.random.default_rng(0).normal(0, 1, (6, 4)).astype(np.float32), "tiny": np.float32(1e-3)}
    graph = Graph(model_of(nodes, {"x": [1, 6]}, {"y": [1, 4]}, weights))
    simple = run_pass(Simplify(), graph).graph
    samples = Samples({"x": np.random.default_rng(1).normal(1, 1, (40, 6)).astype(np.float32)})
    np.testing.assert_allclose(simple.run(samples.inputs)["y"], graph.run(samples.inputs)["y"], atol=1e-5)
    [layer] = dense_layers(simple)
    assert simple.constants[layer.bias_name()].shape == (4,)
    corrected = run_pass(CorrectBias(samples), simple).graph
    assert len(np.unique(corrected.constants[layer.bias_name()])) == 4


def test_bias_of_rows_is_no_bias_of_channels():
    """A Gemm may add a number to each row; such a layer has no bias that passes may change."""
    weights = {"w": np.ones((3, 4), np.float32), "rows": np.arange(2, dtype=np.float32)[:, None]}
    node = helper.make_node("Gemm", ["x", "w", "rows"], ["y"], name="gemm")
    assert not dense_layers(Graph(model_of([node], {"x": [2, 3]}, {"y": [2, 4]}, weights)))
