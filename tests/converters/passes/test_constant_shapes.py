"""Computed shapes become constant where sizes decide them, and answers stay for any number of rows."""

import numpy as np
import pytest

from converters.graph.graph import Graph
from converters.passes import ConstantShapes, run_pass
from tests.simulators.models import model_of
from tests.simulators.pruning_models import WIDTH, WORDS, Words

INPUTS = {"x": ["batch", WORDS, WIDTH]}


def made(net, output, shape):
    """The graph of `net` before the pass and after it."""
    graph = Graph(model_of(net.nodes, net.inputs, {output: shape}, net.weights))
    return graph, run_pass(ConstantShapes(), graph).graph


def shapes_of(graph):
    """The constant shapes of Reshape and Expand; None for a computed one."""
    wanted = [node.input[1] for node in graph.nodes if node.op_type in ("Reshape", "Expand")]
    return [graph.constants[name].tolist() if name in graph.constants else None for name in wanted]


def merged(net):
    """As Keras' layers of attention are exported: the shape is a product of sizes, and a size is to be inferred."""
    heads = net.op("Transpose", net.op("Reshape", "x", net.constant([0, WORDS, 4, 4], np.int64)), perm=[0, 2, 1, 3])
    first = net.op("Gather", net.op("Shape", heads), net.constant([0, 1], np.int64), axis=0)
    product = net.op("ReduceProd", first, keepdims=1)
    shape = net.op("Concat", product, net.constant([-1], np.int64), net.constant([4], np.int64), axis=0)
    return net.op("Reshape", net.op("Reshape", heads, shape), net.constant([-1, 4, WORDS, 4], np.int64))


def repeated(net):
    """As PyTorch's older exporter writes expand: -1 in the shape is replaced by Where."""
    batch = net.op("Gather", net.op("Shape", "x"), net.constant([0], np.int64), axis=0)
    shape = net.op("Concat", batch, net.constant([-1, 3, -1], np.int64), axis=0)
    ones, none = net.constant([1, 1, 1, 1], np.int64), net.constant([-1], np.int64)
    shape = net.op("Where", net.op("Equal", shape, none), ones, shape)
    return net.op("Expand", net.op("Unsqueeze", "x", net.constant([2], np.int64)), shape)


@pytest.mark.parametrize(
    ("build", "found"),
    [(merged, [[0, WORDS, 4, 4], [-1, WORDS, 4], [-1, 4, WORDS, 4]]), (repeated, [[1, WORDS, 3, WIDTH]])],
)
def test_shapes_of_sizes_become_constant(build, found):
    """One size is left open or kept, that of the rows; nodes that only computed the shape are gone."""
    net = Words()
    output = build(net)
    shape = Graph(model_of(net.nodes, net.inputs, {}, net.weights)).shapes[output]
    graph, after = made(net, output, ["batch", *shape[1:]])
    assert None in shapes_of(graph)
    assert shapes_of(after) == found
    assert not [node for node in after.nodes if node.op_type in ("Shape", "Gather", "Concat", "Where")]
    for rows in (1, 2, 5):
        x = net.x(rows)
        np.testing.assert_array_equal(after.run({"x": x})[output], graph.run({"x": x})[output])
    assert not run_pass(ConstantShapes(), after).modified


@pytest.mark.parametrize("kind", ["values", "rows twice", "rows and one more"])
def test_other_shapes_stay_computed(kind):
    """A size that values decide, two sizes that grow with the rows, and one that grows otherwise are left alone."""
    net = Words()
    batch, one = net.op("Shape", "x", start=0, end=1), net.constant([1], np.int64)
    flat = net.op("Reshape", net.op("ReduceMean", "x", axes=[1, 2], keepdims=1), net.constant([-1, 1], np.int64))
    if kind == "values":
        chosen = net.op("Shape", net.op("NonZero", net.op("Relu", flat)), start=1, end=2)
        shape = net.op("Concat", net.op("Add", batch, net.op("Sub", chosen, chosen)), one, axis=0)
        output = net.op("Expand", flat, shape)
    elif kind == "rows twice":
        wide = net.op("Expand", flat, net.op("Concat", batch, batch, axis=0))
        output = net.op("ReduceMean", wide, axes=[1], keepdims=1)
    else:
        more = net.op("Expand", net.constant([[1.0]]), net.op("Concat", net.op("Add", batch, one), one, axis=0))
        output = net.op("Add", flat, net.op("ReduceMean", more, axes=[0], keepdims=1))
    graph, after = made(net, output, ["batch", 1])
    assert None in shapes_of(after)
    np.testing.assert_array_equal(after.run({"x": net.x(3)})[output], graph.run({"x": net.x(3)})[output])
