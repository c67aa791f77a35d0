import numpy as np
import pytest

from converters.cost.file_estimate import fit_of, instructions
from converters.cost.operations.onnx import of_profile, operations
from edgekit.errors import RuntimeLoadError
from edgekit.runtimes import ONNXRUNTIME
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


def test_channels_that_fill_no_vector_are_of_another_kind():
    """The integer depthwise kernel computes them one by one: with a stride, 12 took 2.8 times the count of 16."""
    scale = {"float": []}
    kinds = {}
    for channels in (12, 16):
        image = {"int8": [1, 8, 8, channels]}
        made = event("QLinearConv", [image, scale, scale, {"int8": [channels, 1, 3, 3]}], [image])
        [one] = of_profile([made]) or []
        kinds[channels] = one
    assert (kinds[12].kind, kinds[12].depth) == ("QLinearConv depthwise odd int8*int8", 4)
    assert kinds[16].kind == "QLinearConv depthwise int8*int8"
    for core in ("cortex-a53", "cortex-a72", "cortex-a76"):
        fit = fit_of(ONNXRUNTIME, core)
        assert fit is not None
        assert instructions(fit, [kinds[12]]) > 1.5 * instructions(fit, [kinds[16]])


def test_weights_that_are_made_at_every_run_are_of_another_kind():
    """Constant weights are arranged once, when the file is loaded."""
    product = event("MatMul", [{"float": [1, 8]}, {"float": [8, 4]}], [{"float": [1, 4]}])
    made = event("DequantizeLinear", [{"int8": [8, 4]}, {"float": []}], [{"float": [8, 4]}])
    assert [one.kind for one in of_profile([product]) or []] == ["MatMul row float*float"]
    assert (of_profile([made, product]) or [])[1].kind == "MatMul row unpacked float*float"


def test_steps_units_and_inputs_of_recurrent_operators():
    """The units of a step are apart from its inputs, whose products are computed for all steps at once."""
    gru = event("GRU", [{"float": [7, 1, 5]}, {"float": [2, 12, 5]}, {"float": [2, 12, 4]}], [{"float": [7, 2, 1, 4]}])
    [one] = of_profile([gru]) or []
    assert (one.columns, one.depth, one.taps, one.products) == (12, 5, 4, 14)


def test_windows_with_a_stride_are_gathered_value_by_value():
    """Their kernels take more for a position."""
    scale = {"float": [8, 3, 5, 5]}
    kinds = [
        (of_profile([event("Conv", [{"float": [1, 3, 8, 8]}, scale], [{"float": [1, 8, size, size]}])]) or [])[0].kind
        for size in (8, 4)
    ]
    assert kinds == ["Conv float*float", "Conv strided float*float"]


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
