import numpy as np
import onnx
import onnxslim
from onnx import TensorProto, helper

from converters.graph.graph import Graph
from converters.passes import Simplify, run_pass
from converters.passes.simplify import without_identities


def copies():
    """A sum that reads its input through two identities, one of them also an output's."""
    nodes = [
        helper.make_node("Identity", ["x"], ["a"], "first"),
        helper.make_node("Identity", ["a"], ["b"], "second"),
        helper.make_node("Add", ["a", "b"], ["s"], "sum"),
        helper.make_node("Identity", ["s"], ["y"], "last"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "copies", ends[:1], ends[1:])
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_identities_are_dropped_but_for_those_of_outputs():
    """The sum reads the input itself; the answers and the interface stay."""
    graph = copies()
    plain = without_identities(graph)
    assert [node.name for node in plain.nodes] == ["sum", "last"]
    rows = {"x": np.ones((2, 3), np.float32)}
    assert np.array_equal(plain.run(rows)["y"], graph.run(rows)["y"])
    assert (plain.inputs, plain.outputs) == (graph.inputs, graph.outputs)


def test_input_of_which_only_the_shape_is_read_stays_in_the_interface():
    """onnxslim folds the shape to a constant and drops the input; the pass keeps the graph instead."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], "shape"),
        helper.make_node("Cast", ["sizes"], ["floats"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["z", "floats"], ["y"], "sum"),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xz"]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])]
    made = helper.make_graph(nodes, "shape", inputs, outputs)
    graph = Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    copy = onnx.ModelProto()
    copy.CopyFrom(graph.model)
    assert [value.name for value in onnxslim.slim(copy).graph.input] == ["z"]
    result = run_pass(Simplify(), graph)
    assert [spec.name for spec in result.graph.inputs] == ["x", "z"]


def test_dropout_whose_mask_is_read_stays():
    """onnxslim drops the node and leaves a read of its mask; the pass keeps the graph instead."""
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], "negated"),
        helper.make_node("Dropout", ["n"], ["d", "mask"], "dropout"),
        helper.make_node("Neg", ["d"], ["y"], "back"),
        helper.make_node("Cast", ["mask"], ["z"], "cast", to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xyz"]
    made = helper.make_graph(nodes, "masked", ends[:1], ends[1:])
    graph = Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    rows = {"x": np.ones((2, 3), np.float32)}
    answers = run_pass(Simplify(), graph).graph.run(rows)
    assert np.array_equal(answers["y"], rows["x"])
    assert np.array_equal(answers["z"], rows["x"])
