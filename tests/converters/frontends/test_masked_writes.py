"""Writes of one value where a mask is true, as exporters write them and as a hand may."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from converters.frontends.onnx.masked_writes import with_masked_writes


def model(mask_shape, value_shape=(1,)):
    """x of (3, 4) with 7 where the mask is true, through the list of places."""
    nodes = [
        helper.make_node("NonZero", ["mask"], ["where"]),
        helper.make_node("Transpose", ["where"], ["places"], perm=[1, 0]),
        helper.make_node("Shape", ["places"], ["size"], start=0, end=1),
        helper.make_node("Reshape", ["seven", "one"], ["flat"]),
        helper.make_node("Expand", ["flat", "size"], ["values"]),
        helper.make_node("ScatterND", ["x", "places", "values"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 4)),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, mask_shape),
    ]
    constants = [
        helper.make_tensor("seven", TensorProto.FLOAT, value_shape, [7.0]),
        helper.make_tensor("one", TensorProto.INT64, (1,), [1]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, 4))
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answer(proto, mask):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "mask": mask})[0]


@pytest.mark.parametrize("mask_shape", [(3, 4), (1, 4)])
@pytest.mark.parametrize("value_shape", [(1,), (1, 1, 1)])
def test_answers_stay_for_every_shape_of_mask_and_value(mask_shape, value_shape):
    """A mask of one row writes into the first row only; Where would write into all, and add the axes of the value."""
    before = model(mask_shape, value_shape)
    after = with_masked_writes(before)
    onnx.checker.check_model(after, full_check=True)
    mask = np.random.default_rng(0).random(mask_shape) > 0.5
    np.testing.assert_array_equal(answer(after, mask), answer(before, mask))


def test_list_of_places_is_gone():
    """Where the mask has the tensor's shape."""
    kinds = {one.op_type for one in with_masked_writes(model((3, 4))).graph.node}
    assert "Where" in kinds
    assert not kinds & {"NonZero", "ScatterND"}
