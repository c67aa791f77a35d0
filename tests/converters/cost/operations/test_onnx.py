import numpy as np
import pytest

from converters.cost.operations.onnx import of_profile, operations
from edgekit.errors import RuntimeLoadError
from tests.simulators.conv_models import residual
from tests.simulators.models import saved


def event(kind, read, made):
    return {
        "cat": "Node",
        "name": "n_kernel_time",
        "args": {"op_name": kind, "input_type_shape": read, "output_type_shape": made},
    }


def test_the_operators_are_those_that_run(tmp_path):
    """Convolutions have their fused kernels, and their matrix sizes: outputs, positions, inputs of a window."""
    path = saved(residual().model, tmp_path / "model.onnx")
    found = operations(path, {"x": np.zeros((1, 3, 16, 16), np.float32)})
    assert found is not None
    first = next(one for one in found if one.kind.startswith("Conv"))
    assert first.depth == 3 * 9
    assert first.kind.endswith("float*float")


def test_a_convolution_with_channels_last_is_understood():
    """Quantized convolutions have their channels last, and one group for each channel where they are depthwise."""
    scale = {"float": []}
    image, out = {"int8": [1, 8, 8, 16]}, {"int8": [1, 8, 8, 16]}
    depthwise = event("QLinearConv", [image, scale, scale, {"int8": [16, 1, 3, 3]}], [out])
    [one] = of_profile([depthwise]) or []
    assert (one.kind, one.rows, one.columns, one.taps) == ("QLinearConv depthwise int8*int8", 64, 16, 9)


def test_loops_hide_their_work():
    """A file with a loop is estimated from the graph."""
    assert of_profile([event("Loop", [{"float": [1]}], [{"float": [1]}])]) is None


def test_shapes_of_other_ranks_are_no_crash():
    """An operator that was never counted in this form gives no estimate from the file."""
    assert of_profile([event("Conv", [{"float": []}, {"float": []}], [{"float": []}])]) is None


def test_a_damaged_file_is_named(tmp_path):
    """The error is edgekit's own."""
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(RuntimeLoadError, match=r"bad\.onnx"):
        operations(tmp_path / "bad.onnx", {})
