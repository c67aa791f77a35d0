"""Factors behind and in front of dense layers become part of their weights."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.graph.graph import Graph
from converters.lowering.fusing import with_gelus
from converters.passes import FoldFactors, run_pass

RNG = np.random.default_rng(1)
WEIGHTS, BIAS = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=3).astype(np.float32)


def dense(nodes, factor, outputs=("y",)):
    """A graph from x (n, 4) to `outputs` (n, 3), with weights w, their transpose t, bias b and factor f."""
    held = {"w": WEIGHTS, "t": np.ascontiguousarray(WEIGHTS.T), "b": BIAS, "f": np.asarray(factor, np.float32)}
    ends = {"x": ["n", 4], **{name: ["n", 3] for name in outputs}}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends.items()}
    constants = [numpy_helper.from_array(value, name) for name, value in held.items()]
    made = helper.make_graph(nodes, "dense", [values.pop("x")], list(values.values()), constants)
    return Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["p"], "product")
SHIFT = helper.make_node("Add", ["b", "p"], ["s"], "shift")
GEMM = helper.make_node("Gemm", ["x", "t", "b"], ["s"], "gemm", transB=1, alpha=0.5, beta=2.0)


@pytest.mark.parametrize("factor", [2.5, [0.5, 3.0, -1.0], [[4.0, 0.25, 1.0]]])
@pytest.mark.parametrize("layer", [[PRODUCT, SHIFT], [GEMM]])
@pytest.mark.parametrize("operator", ["Mul", "Div"])
def test_a_factor_is_folded_into_weights_and_bias(factor, layer, operator):
    """The answers stay, and the operator is gone."""
    graph = dense([*layer, helper.make_node(operator, ["s", "f"], ["y"], "factor")], factor)
    result = run_pass(FoldFactors(), graph)
    assert result.modified
    assert [node.name for node in result.graph.nodes] == [node.name for node in layer]
    rows = {"x": RNG.normal(size=(5, 4)).astype(np.float32)}
    assert np.allclose(result.graph.run(rows)["y"], graph.run(rows)["y"], rtol=1e-5, atol=1e-6)


def in_front(*layers, operator="Mul"):
    """Nodes: s is x with the factor f, then `layers`."""
    return [helper.make_node(operator, ["x", "f"], ["s"], "factor"), *layers]


@pytest.mark.parametrize("factor", [2.5, [0.25], [[3.0]]])
@pytest.mark.parametrize("operator", ["Mul", "Div"])
@pytest.mark.parametrize(
    "layers",
    [
        [helper.make_node("MatMul", ["s", "w"], ["p"], "a"), helper.make_node("Add", ["p", "b"], ["y"], "shift")],
        [helper.make_node("Gemm", ["s", "t", "b"], ["y"], "a", transB=1, alpha=0.5, beta=2.0)],
        [
            helper.make_node("MatMul", ["s", "w"], ["p"], "a"),
            helper.make_node("Gemm", ["s", "t"], ["q"], "c", transB=1),
            helper.make_node("Sub", ["p", "q"], ["y"], "difference"),
        ],
    ],
    ids=["MatMul", "Gemm", "two layers"],
)
def test_one_number_in_front_is_folded_into_the_weights_of_all_layers_that_read_it(layers, operator, factor):
    """The answers stay, the bias is not multiplied, and the operator is gone."""
    graph = dense(in_front(*layers, operator=operator), factor)
    result = run_pass(FoldFactors(), graph)
    assert result.modified
    assert [node.name for node in result.graph.nodes] == [node.name for node in layers]
    rows = {"x": RNG.normal(size=(5, 4)).astype(np.float32)}
    assert np.allclose(result.graph.run(rows)["y"], graph.run(rows)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "factor"),
    [
        ([helper.make_node("MatMul", ["s", "w"], ["y"])], [1.0, 2.0, 3.0, 4.0]),
        ([helper.make_node("MatMul", ["s", "w"], ["y"])], [[[2.0]]]),
        ([helper.make_node("MatMul", ["s", "w"], ["p"]), helper.make_node("MatMul", ["x", "w"], ["q"])], 2.0),
        ([helper.make_node("MatMul", ["s", "w"], ["y"]), helper.make_node("Relu", ["s"], ["r"])], 2.0),
        ([helper.make_node("Gemm", ["s", "s"], ["y"], transA=1)], 2.0),
    ],
    ids=["different factors", "another rank", "weights read twice", "read by another operator", "no weights"],
)
def test_other_factors_in_front_stay(layers, factor):
    """Different factors bring the inputs to one scale; shared weights and other readers keep theirs."""
    ends = [name for name in ("y", "p", "q", "r") if any(name in node.output for node in layers)]
    graph = dense(in_front(*layers), factor, ends)
    assert not run_pass(FoldFactors(), graph).modified


@pytest.mark.parametrize(
    ("nodes", "factor", "outputs"),
    [
        ([PRODUCT, helper.make_node("Mul", ["p", "f"], ["y"])], 2.0, ("y", "p")),
        (
            [PRODUCT, helper.make_node("Mul", ["p", "f"], ["q"]), helper.make_node("Add", ["p", "q"], ["y"])],
            2.0,
            ("y",),
        ),
        (
            [PRODUCT, helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Mul", ["p", "f"], ["y"])],
            2.0,
            "yz",
        ),
        ([PRODUCT, helper.make_node("Div", ["f", "p"], ["y"])], 2.0, ("y",)),
        ([PRODUCT, helper.make_node("Div", ["p", "f"], ["y"])], 0.0, ("y",)),
        ([PRODUCT, helper.make_node("Mul", ["p", "f"], ["y"])], 3e38, ("y",)),
    ],
    ids=["an output", "read twice", "weights read twice", "a dividend", "divided by 0", "overflow"],
)
def test_other_factors_stay(nodes, factor, outputs):
    """A value that is read elsewhere, shared weights, and a factor that would leave float32 stay as they are."""
    assert not run_pass(FoldFactors(), dense(nodes, factor, outputs)).modified


def convolution(nodes, factor):
    """A graph from x (n, 4, 5, 5) to y with weights w (6, 2, 3, 3), bias b and factor f."""
    held = {"w": RNG.normal(size=(6, 2, 3, 3)), "b": RNG.normal(size=6), "f": np.asarray(factor)}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size, 5, 5]) for name, size in (("x", 4), ("y", 6))
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in held.items()]
    made = helper.make_graph(nodes, "convolution", ends[:1], ends[1:], constants)
    return Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


SETTINGS = {"group": 2, "pads": [1, 1, 1, 1], "name": "conv"}
CHANNELS = np.arange(1.0, 7.0)[:, None, None]


@pytest.mark.parametrize(
    ("nodes", "factor", "folded"),
    [
        (
            [helper.make_node("Conv", ["x", "w", "b"], ["c"], **SETTINGS), helper.make_node("Mul", ["f", "c"], ["y"])],
            0.5,
            True,
        ),
        (
            [helper.make_node("Conv", ["x", "w", "b"], ["c"], **SETTINGS), helper.make_node("Div", ["c", "f"], ["y"])],
            CHANNELS,
            True,
        ),
        (
            [helper.make_node("Conv", ["x", "w"], ["c"], **SETTINGS), helper.make_node("Mul", ["c", "f"], ["y"])],
            CHANNELS[None],
            True,
        ),
        (
            [helper.make_node("Conv", ["x", "w"], ["c"], **SETTINGS), helper.make_node("Mul", ["c", "f"], ["y"])],
            np.ones(5),
            False,
        ),
        (
            [helper.make_node("Mul", ["x", "f"], ["s"]), helper.make_node("Conv", ["s", "w", "b"], ["y"], **SETTINGS)],
            0.5,
            True,
        ),
        (
            [helper.make_node("Mul", ["x", "f"], ["s"]), helper.make_node("Conv", ["s", "w", "b"], ["y"], **SETTINGS)],
            CHANNELS[:4],
            False,
        ),
    ],
    ids=["behind", "behind, each channel", "behind, no bias", "along a row", "in front", "in front, each channel"],
)
def test_factors_of_convolutions_are_folded_too(nodes, factor, folded):
    """One number on either side and a factor for each channel behind; a factor along a row stays."""
    graph = convolution(nodes, factor)
    result = run_pass(FoldFactors(), graph)
    assert result.modified == folded
    assert len(result.graph.nodes) == (1 if folded else 2)
    rows = {"x": RNG.normal(size=(2, 4, 5, 5)).astype(np.float32)}
    assert np.allclose(result.graph.run(rows)["y"], graph.run(rows)["y"], rtol=1e-5, atol=1e-5)


def test_the_factor_that_ends_a_gelu_stays():
    """Without its half, nothing knows a gelu as one, and LiteRT runs a dozen operators in its place."""
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"], "divide"),
        helper.make_node("Erf", ["d"], ["e"], "erf"),
        helper.make_node("Add", ["e", "one"], ["a"], "add"),
        helper.make_node("Mul", ["x", "a"], ["m"], "multiply"),
        helper.make_node("Mul", ["m", "half"], ["g"], "halve"),
        helper.make_node("MatMul", ["g", "w"], ["y"], "product"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", n]) for name, n in (("x", 4), ("y", 3))]
    held = {"w": WEIGHTS, "root": np.sqrt(np.float32(2)), "one": np.float32(1), "half": np.float32(0.5)}
    constants = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in held.items()]
    made = helper.make_graph(nodes, "gelu", ends[:1], ends[1:], constants)
    graph = Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert not FoldFactors().applies(graph)
    assert "Gelu" in [node.op_type for node in with_gelus(graph)]
