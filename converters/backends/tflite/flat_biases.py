"""Gives the biases of a .tflite one axis.

TensorFlow's converter merges a Mul or Add by a vector behind a dense layer into it, and keeps the vector's shape (1, O)
for the bias. litert-quantizer then writes O scales along the first axis, and LiteRT refuses the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from ai_edge_litert import schema_py_generated as schema

BIAS = 2  # input of a convolution or dense layer
WITH_BIAS = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)
SHAPE_FIELD, SIZE = 4, 4  # of a tensor's table; bytes of a number in its shape


def with_flat_biases(data: bytes) -> bytes:
    """The same file, whose biases have one axis; `data` itself where all do."""
    changed = bytearray(data)
    shapes = dict(_wide_shapes(schema.Model.GetRootAs(changed)))
    for start, width in shapes.items():  # a vector begins with its length
        struct.pack_into("<ii", changed, start - SIZE, 1, width)
    return bytes(changed) if shapes else data


def _wide_shapes(model: Any) -> Iterator[tuple[int, int]]:
    """Where the shapes of biases with more axes begin in the file, and the number of channels."""
    codes = [model.OperatorCodes(index).BuiltinCode() for index in range(model.OperatorCodesLength())]
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            if codes[operator.OpcodeIndex()] not in WITH_BIAS or operator.InputsLength() <= BIAS:
                continue
            if (place := operator.Inputs(BIAS)) < 0:
                continue
            tensor = graph.Tensors(place)
            shape = [tensor.Shape(axis) for axis in range(tensor.ShapeLength())]
            if len(shape) > 1 and set(shape[:-1]) == {1}:
                yield tensor._tab.Vector(tensor._tab.Offset(SHAPE_FIELD)), shape[-1]
