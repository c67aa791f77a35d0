"""Messages of ONNX Runtime are shown in one line that names the operator and its layer."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.errors import RuntimeLoadError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.runtimes.ort_messages import text_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Grid node. Name:'n' Status "
            "Message: grid.cc:124 Compute Grid: size (8) must equal (2)",
            "operator Grid (layer 'n'): Compute Grid: size (8) must equal (2)",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load failed: /src/core/utils.h:57 void ort::utils::Check(const std::map"
            "<int>&, bool) only supports opset 3\n",
            "Load failed: only supports opset 3",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Type Error: Type parameter (T) of Optype (ScatterND) bound to different "
            "types (tensor(float16) and tensor(float) in node (put/1).",
            "operator ScatterND (layer 'put/1') gets values of the types float16 and float, which it must not mix",
        ),
        (
            "[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. Type Error: Type 'tensor(int32)' of "
            "input parameter (x) of operator (Sin) in node (wave) is invalid.",
            "operator Sin (layer 'wave') does not take the type int32 (tensor x)",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Type Error: Type (tensor(float)) of output arg (y) of node (n) does not "
            "match expected type (tensor(float16)).",
            "the operator (layer 'n') gives the type float16 for tensor y, stated is float",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Node (n) Op (Add) [ShapeInferenceError] Incompatible dimensions",
            "operator Add (layer 'n'): Incompatible dimensions",
        ),
        ("x" * 400, "x" * 296 + " ..."),
    ],
)
def test_places_in_source_files_are_left_out(text, expected):
    """Codes, files, signatures and line breaks say nothing to users."""
    assert text_of(RuntimeError(text)) == expected


def test_operator_without_a_kernel_is_named_with_advice():
    """ONNX Runtime has no Min of 16-bit integers: the operator, its layer and what to do are said."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Min", ["x", "x"], ["y"], name="least")],
        "g",
        [value("x", TensorProto.INT16, [2])],
        [value("y", TensorProto.INT16, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(
        RuntimeLoadError, match=r"does not run operator Min of opset 13 .* \(layer 'least'\)$"
    ) as caught:
        OnnxRuntime(model.SerializeToString())
    assert "another opset" in caught.value.advice


def test_failed_run_names_the_layer():
    """An integer division by zero is a fault of the input, told without codes of ONNX Runtime."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Div", ["x", "x"], ["y"], name="share")],
        "g",
        [value("x", TensorProto.INT32, [2])],
        [value("y", TensorProto.INT32, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runtime = OnnxRuntime(onnx.ModelProto.SerializeToString(model))
    with pytest.raises(RuntimeLoadError, match=r"operator Div \(layer 'share'\): .*division by zero") as caught:
        runtime.run({"x": np.zeros(2, np.int32)})
    assert "ONNXRuntimeError" not in str(caught.value)
    runtime.close()
