"""Constants of loops and branches have names of their own, which the conversion to half precision needs."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from converters.backends.onnx_common import half
from converters.graph.graph import Graph
from edgekit.runtimes.onnx import OnnxRuntime


def step(factor, name):
    """The body of a loop: state times a factor, which is named like that of any other loop, plus the bias outside."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", [f"{name}/in", "factor"], [f"{name}/m"]),
        helper.make_node("Add", [f"{name}/m", "bias"], [f"{name}/out"]),
        helper.make_node("Identity", [f"{name}/on"], [f"{name}/still"]),
    ]
    ins = [value(f"{name}/i", TensorProto.INT64, []), value(f"{name}/on", TensorProto.BOOL, [])]
    ins.append(value(f"{name}/in", TensorProto.FLOAT, ["n", 3]))
    outs = [value(f"{name}/still", TensorProto.BOOL, []), value(f"{name}/out", TensorProto.FLOAT, ["n", 3])]
    return helper.make_graph(nodes, name, ins, outs, [numpy_helper.from_array(np.float32(factor), "factor")])


def test_loops_with_constants_of_the_same_name_become_half_precision():
    """The answers are those of the float model; the constants of both loops differ."""
    nodes = [
        helper.make_node("Loop", ["steps", "", "x"], ["a"], body=step(0.5, "first"), name="first"),
        helper.make_node("Loop", ["steps", "", "a"], ["y"], body=step(3.0, "second"), name="second"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    held = {"steps": np.int64(2), "bias": np.float32([1, 2, 3])}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    made = helper.make_graph(nodes, "loops", ends[:1], ends[1:], constants)
    graph = Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    runtime = OnnxRuntime(half(graph).SerializeToString())
    x = np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)
    [found] = runtime.run({"x": x}).values()
    runtime.close()
    np.testing.assert_allclose(found, 9 * (x / 4 + [1.5, 3, 4.5]) + [4, 8, 12], rtol=3e-3, atol=3e-3)
