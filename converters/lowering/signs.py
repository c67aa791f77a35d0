"""Finds tensors that are never negative, whatever the model's inputs are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from converters.graph.graph import Graph, attributes

# Operators whose results are never negative.
NEVER_NEGATIVE = ("Abs", "ArgMax", "ArgMin", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu",
                  "Sigmoid", "Softmax", "Softplus", "Sqrt")  # fmt: skip
# Operators whose results are not negative where none of their values is.
KEEPS_SIGN = ("Add", "AveragePool", "Cast", "Concat", "Div", "Dropout", "Expand", "Flatten", "GlobalAveragePool",
              "GlobalMaxPool", "Identity", "MaxPool", "Min", "Mul", "ReduceMax", "ReduceMean", "ReduceMin",
              "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Sum", "Tile", "Transpose", "Unsqueeze")  # fmt: skip

# How many of an operator's inputs are values; the others are shapes, axes and limits.
VALUES = {"Expand": 1, "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceSum": 1, "Reshape": 1, "Slice": 1,
          "Split": 1, "Squeeze": 1, "Tile": 1, "Unsqueeze": 1}  # fmt: skip


def never_negative(graph: Graph) -> set[str]:
    """Names of the tensors of `graph` that have no negative value for any input, constants included."""
    constants = graph.constants
    names = {name for name, value in constants.items() if value.size and bool(np.all(value >= 0))}
    for node in graph.nodes:
        read = [name for name in node.input[: VALUES.get(node.op_type, len(node.input))] if name]
        kept = node.op_type in KEEPS_SIGN and all(name in names for name in read)
        smooth = attributes(node).get("mode", "nearest") != "cubic"  # a cubic curve swings below its points
        resized = node.op_type in ("Resize", "Upsample") and smooth and node.input[0] in names
        largest = node.op_type == "Max" and any(name in names for name in read)
        padded = node.op_type == "Pad" and {node.input[0], *[name for name in node.input[2:3] if name]} <= names
        if kept or padded or largest or resized or node.op_type in NEVER_NEGATIVE or _clipped(node, constants):
            names.update(name for name in node.output if name)
        elif node.op_type == "TopK":
            names.add(node.output[1])
    return names


def _clipped(node: Any, constants: Mapping[str, Any]) -> bool:
    """True for a Clip whose minimum is constant and not negative."""
    low = node.input[1] if node.op_type == "Clip" and len(node.input) > 1 else ""
    return low in constants and bool(np.all(constants[low] >= 0))
