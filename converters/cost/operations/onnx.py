"""The operators of a .onnx file as ONNX Runtime runs them, from a profile of one run on this machine.

ONNX Runtime fuses and replaces operators when it loads a file, so the file's own operators are not those that run. Its
choices for x86-64 are replaced by those for ARM.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from converters.cost.operations.operation import RECURRENT, Operation
from edgekit.errors import RuntimeLoadError
from edgekit.tensors import Array

X86_ONLY = ("NchwcTransformer",)
AS_ON_ARM = {
    "session.qdqisint8allowed": "1",  # int8 activations, not only uint8 ones
    "session.disable_prepacking": "1",  # packed weights have no shape in the profile
}
SAME_KERNELS = {"FusedConv": "Conv", "FusedGemm": "Gemm"}  # an activation adds little
CONVOLUTIONS = ("Conv", "NhwcFusedConv", "QLinearConv", "ConvInteger")
MATRICES = (
    "MatMul", "FusedMatMul", "Gemm", "QGemm", "MatMulIntegerToFloat", "MatMulInteger",
    "DynamicQuantizeMatMul", "QLinearMatMul", "MatMulNBits",
)  # fmt: skip
TRANSPOSED = "ConvTranspose"
BRANCHING = ("Loop", "Scan", "If")
VECTOR = 8  # channels that the integer depthwise kernel computes at once
WEIGHTS_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}  # input with the weights; 1 for the others

Tensor = tuple[str, list[int]]


def operations(path: Path, inputs: Mapping[str, Array]) -> list[Operation] | None:
    """The operators of one run on `inputs`; None where there are branches.

    Raises:
        RuntimeLoadError: The file cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        for name, value in AS_ON_ARM.items():
            options.add_session_config_entry(name, value)
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(X86_ONLY)
            )
            session.run(None, dict(inputs))
        except Exception as error:  # ONNX Runtime's errors have no common class below Exception
            raise RuntimeLoadError(f"{path.name} cannot be run by ONNX Runtime: {error}") from error
        return of_profile(json.loads(Path(session.end_profiling()).read_text()))


def of_profile(events: list[dict[str, Any]]) -> list[Operation] | None:
    """The operators of a profile's run; None where it has some whose work the shapes do not show."""
    try:
        return _operators(events)
    except (IndexError, ValueError, ZeroDivisionError):  # tensors of other ranks than those that were counted
        return None


def _operators(events: list[dict[str, Any]]) -> list[Operation] | None:
    runs = []
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            if kind in BRANCHING:
                return None
            read, made = (_tensors(event["args"][key]) for key in ("input_type_shape", "output_type_shape"))
            runs.append((SAME_KERNELS.get(kind, kind), read, made))
    unpacked = [made[0][1] for kind, _, made in runs if kind == "DequantizeLinear" and made]
    return [_operation(kind, read, made, unpacked) for kind, read, made in runs]


def _tensors(listed: list[dict[str, list[int]]]) -> list[Tensor]:
    return [(kind, shape) for entry in listed for kind, shape in entry.items()]


def _operation(kind: str, read: list[Tensor], made: list[Tensor], unpacked: list[list[int]]) -> Operation:
    """One operator. Weights whose shape is among `unpacked` are made at every run, not arranged once at the start."""
    weights = read[WEIGHTS_AT.get(kind, 1)] if len(read) > WEIGHTS_AT.get(kind, 1) else ("", [])
    types = f"{read[0][0]}*{weights[0]}" if read else ""
    types = f"unpacked {types}" if kind in (*MATRICES, *RECURRENT) and weights[1] in unpacked else types
    if kind in CONVOLUTIONS:
        return _convolution(kind, types, read[0][1], weights[1], made[0][1])
    if kind == TRANSPOSED:
        depth, columns, *window = weights[1]
        places = math.prod(read[0][1]) // max(depth, 1)
        return Operation(f"{kind} {types}", columns * math.prod(window), places, depth)
    if kind in MATRICES:
        out = made[0][1]
        rows, columns = (out[-2] if len(out) > 1 else 1), (out[-1] if out else 1)
        # with constant weights, a batch of matrices is one matrix with more rows
        products = math.prod(out[:-2]) if len(weights[1]) > 2 and kind != "MatMulNBits" else 1
        rows = rows if products > 1 else math.prod(out) // max(columns, 1)
        depth = math.prod(read[0][1]) // max(rows * products, 1)
        return Operation(f"{kind}{' row' if rows == 1 else ''} {types}", rows, columns, depth, 1, products)
    if kind in RECURRENT:
        directions, gates = weights[1][0], weights[1][1]
        if kind == "DynamicQuantizeLSTM":  # its weights are transposed
            gates = weights[1][2]
        return Operation(f"{kind} {types}", 1, gates, read[0][1][2], made[0][1][-1], read[0][1][0] * directions)
    written = sum(math.prod(shape) for _, shape in made)
    if kind == "DequantizeLinear" and len(weights[1]) == 1 and len(read[0][1]) == 2 and weights[1][0] == read[0][1][-1]:
        kind += " columns"  # a scale for each element of the last axis
    if kind == "Transpose" and read[0][1][-1:] == made[0][1][-1:]:
        kind += " rows"  # the last axis stays
    largest = max((math.prod(shape) for _, shape in read), default=0)
    return Operation(f"{kind} {made[0][0] if made else ''}", 1, written, largest)


def _convolution(kind: str, types: str, image: list[int], weights: list[int], out: list[int]) -> Operation:
    channels, depth, *window = weights
    taps = math.prod(window)
    first = out[1] == channels and image[1] % max(depth, 1) == 0  # channels are the first axis
    groups = max((image[1] if first else image[-1]) // max(depth, 1), 1)
    places = math.prod(out) // max(channels * out[0], 1)
    # rows of a window are copied in one piece with stride 1, else value by value
    strided = (
        " strided" if taps > 1 and math.prod(image) // max(image[1 if first else -1] * image[0], 1) > places else ""
    )
    if depth == 1 and groups > 1:
        # windows of 3 by 3 with stride 1 have a kernel of their own; others are gathered, channel by channel
        direct = window == [3, 3] and math.prod(image) == math.prod(out)
        height = out[2 if first else 1] if len(out) > 3 else 1
        word = "" if direct else f" gathered{strided}"
        left = channels % VECTOR if kind == "QLinearConv" else 0
        if left:  # its kernel computes what is left of the channels one by one
            return Operation(f"{kind} depthwise odd{word} {types}", places, channels, left, taps)
        return Operation(f"{kind} depthwise{word} {types}", places, channels, height, taps)
    word = " pointwise" if taps == 1 else strided
    if kind != "Conv":
        return Operation(f"{kind}{word} {types}", places, channels // groups, depth, taps, groups)
    return Operation(f"{kind}{word} {types}", channels // groups, places, depth * taps, 1, groups)
