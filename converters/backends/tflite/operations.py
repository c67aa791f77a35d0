"""The operators of a .tflite file, after the constants that XNNPACK computes when it loads."""

from __future__ import annotations

import math
from typing import Any

from converters.backends.tflite.reader import TYPES, operator_name, parse_tflite
from converters.cost.operations.operation import Operation, is_partial

PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")
HIDDEN = (  # their work does not show in the main graph, or was never counted
    "WHILE", "IF", "CALL", "CALL_ONCE", "CUSTOM", "STABLEHLO_COMPOSITE", "CONV_3D", "CONV_3D_TRANSPOSE",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "RFFT2D",
)  # fmt: skip
QUANTIZED_BEFORE = ("conv float32*int8", "transposed float32*int8")  # a kernel of its own quantizes their inputs
RANGES = "dynamic"
FLOAT = "float32*float32"
NARROW = 8
UNFOLDED = "int4"  # 4-bit constants are not dequantized when the file is loaded


class _File:
    """The main graph of a file."""

    def __init__(self, data: bytes) -> None:
        self.model = parse_tflite(data)
        self.graph = self.model.subgraphs[0]
        self.unpacked: dict[int, str] = {}  # tensors that are dequantized constants, with the type they come from

    def operators(self) -> list[tuple[str, Any]]:
        """Names and operators; without those whose results are computed when the file is loaded."""
        found = []
        for operator in self.graph.operators:
            name = operator_name(self.model, operator)
            if name == "DEQUANTIZE" and self.is_constant(operator.inputs[0]):
                kind = self.type(operator.inputs[0])
                self.unpacked[operator.outputs[0]] = kind
                if kind != UNFOLDED:
                    continue
            found.append((name, operator))
        return found

    def is_constant(self, index: int) -> bool:
        buffer = self.model.buffers[self.graph.tensors[index].buffer]
        return buffer.data is not None or bool(getattr(buffer, "size", 0))

    def type(self, index: int) -> str:
        return str(TYPES[self.graph.tensors[index].type])

    def shape(self, index: int) -> list[int]:
        found = self.graph.tensors[index].shape
        return [] if found is None else [int(size) for size in found]

    def weights(self, index: int) -> str:
        """The type of weights as the kernel sees them."""
        if index not in self.unpacked:
            return self.type(index)
        return "unpacked" if self.unpacked[index] == UNFOLDED else "float32"


def operations(data: bytes) -> list[Operation] | None:
    """The operators of the main graph; None where it has some whose work its shapes do not show."""
    file = _File(data)
    found = file.operators()
    if any(name in HIDDEN for name, _ in found):
        return None
    try:
        return _operations(file, found)
    except (IndexError, ZeroDivisionError):  # an operator on tensors of other ranks than those that were counted
        return None


def _operations(file: _File, found: list[tuple[str, Any]]) -> list[Operation]:
    made: list[Operation] = []
    quantized: set[int] = set()
    for name, one in found:
        if name not in PRODUCTS:
            made.append(_other(file, name, one))
            continue
        product, source = _product(file, name, one), one.inputs[2 if name == "TRANSPOSE_CONV" else 0]
        if source not in quantized and product.kind in QUANTIZED_BEFORE:  # once for all readers of a tensor
            quantized.add(source)
            size = math.prod(file.shape(source))
            made.append(Operation(f"{RANGES} float32", 1, size, size))
        made.append(product)
    return made


def _other(file: _File, name: str, operator: Any) -> Operation:
    read = [index for index in operator.inputs if index >= 0 and not file.is_constant(index)]
    kind = file.type(operator.outputs[0] if name != "DEQUANTIZE" else operator.inputs[0])
    written = sum(math.prod(file.shape(index)) for index in operator.outputs)
    largest = max((math.prod(file.shape(index)) for index in read), default=0)
    if name == "TILE":
        largest = _copies(file.shape(operator.inputs[0]), file.shape(operator.outputs[0]))
    return Operation(f"{name} {kind}", 1, written, largest)


def _copies(before: list[int], after: list[int]) -> int:
    """The number of pieces that a TILE copies: from its last repeated axis on, the values lie together."""
    last = max((axis for axis, size in enumerate(before) if after[axis] != size), default=0)
    return math.prod(after) // max(math.prod(before[last:]), 1)


def _product(file: _File, name: str, operator: Any) -> Operation:
    options = operator.builtinOptions
    first = operator.inputs[2 if name == "TRANSPOSE_CONV" else 0]
    second, out = operator.inputs[1], operator.outputs[0]
    shape, made = file.shape(second), file.shape(out)
    types = f"{file.type(first)}*{file.weights(second)}"
    if name == "BATCH_MATMUL":
        depth = file.shape(first)[-2 if getattr(options, "adjX", False) else -1]
        return Operation(f"matmul {types}", made[-2], made[-1], depth, 1, math.prod(made[:-2]))
    if name == "FULLY_CONNECTED":
        rows = max(math.prod(file.shape(first)) // max(shape[1], 1), 1)
        return _dense(types, rows, shape[0], shape[1])
    positions, taps = made[1] * made[2], shape[1] * shape[2]
    if name == "DEPTHWISE_CONV_2D":
        return Operation(f"depthwise {types}", positions, shape[3], 1, taps)
    if name == "TRANSPOSE_CONV":
        strides = max(options.strideH * options.strideW, 1)  # so many convolutions, each with a part of the taps
        word = f"transposed{' narrow' if types == FLOAT and shape[0] < NARROW else ''}"
        return Operation(f"{word} {types}", positions // strides, shape[0], shape[3], taps / strides, strides)
    groups = max(file.shape(first)[3] // max(shape[3], 1), 1)
    packed = file.weights(second) not in (UNFOLDED, "unpacked")  # LiteRT's own kernel runs the other convolutions
    if packed and taps == 1 and groups == 1 and options.strideH == options.strideW == 1:
        return _dense(types, positions, shape[0], shape[3])
    columns = shape[0] // groups
    return Operation(f"{_word('conv', types, columns)} {types}", positions, columns, shape[3], taps, groups)


def _dense(types: str, rows: int, columns: int, depth: int) -> Operation:
    word = _word("dense" if rows == 1 else "rows", types, columns)
    partial = types == FLOAT and word != "narrow" and is_partial(columns)
    return Operation(f"{word}{' partial' if partial else ''} {types}", rows, columns, depth)


def _word(word: str, types: str, columns: int) -> str:
    """The kind of a product; XNNPACK has other float kernels for few outputs."""
    narrow = types == FLOAT and columns < NARROW
    return "narrow" if narrow and word != "dense" else word
