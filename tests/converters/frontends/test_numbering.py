"""Graphs in which an exporter named helpers by addresses become the same bytes each time."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from converters.frontends.tensorflow.numbering import renumber


def exported(address, first, *, swapped):
    """Two branches of the input and their sum, with names and an order as tf2onnx gives them in one run."""
    axes = f"{address}_ba_{'final' if swapped else 'sum'}_axes__{first}"
    nodes = [
        helper.make_node("Unsqueeze", ["x", axes], [f"Unsqueeze__{first + 1}:0"], name=f"Unsqueeze__{first + 1}"),
        helper.make_node("Unsqueeze", ["x", axes], [f"Unsqueeze__{first + 3}:0"], name=f"Unsqueeze__{first + 3}"),
        helper.make_node("Relu", [f"Unsqueeze__{first + 3}:0"], ["model/dense__1/Relu:0"], name="model/dense__1/Relu"),
        helper.make_node("Add", [f"Unsqueeze__{first + 1}:0", "model/dense__1/Relu:0"], ["y"], name="model/add"),
    ]
    constants = [numpy_helper.from_array(np.array([1]), axes), numpy_helper.from_array(np.ones(3), "unread__7")]
    if swapped:
        nodes[:3] = nodes[1], nodes[2], nodes[0]
        constants.reverse()
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    return helper.make_graph(nodes, "model", ends[:1], ends[1:], constants)


def test_each_export_has_the_same_bytes():
    """Order and numbers follow from what nodes compute; names of layers stay, also with a number of the user's own."""
    one, other = exported(139667765964240, 52, swapped=False), exported(2805491728770, 130, swapped=True)
    renumber(one)
    renumber(other)
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert [node.op_type for node in one.node] == ["Unsqueeze", "Unsqueeze", "Relu", "Add"]
    assert [node.name for node in one.node][2:] == ["model/dense__1/Relu", "model/add"]
    assert len({name for node in one.node for name in node.output}) == 4
    assert [value.name for value in (*one.input, *one.output)] == ["x", "y"]


def test_graphs_without_addresses_stay():
    """Other exports are the same each time already."""
    graph = exported(7, 52, swapped=True)
    before = graph.SerializeToString(deterministic=True)
    renumber(graph)
    assert graph.SerializeToString(deterministic=True) == before
