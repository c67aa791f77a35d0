"""Multiply-adds inside the bodies of loops and branches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from onnx import helper

Shapes = Mapping[str, tuple[int | None, ...]]
WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def bodies_of(node: Any) -> list[Any]:
    """The graphs inside `node`: the body of a Loop or Scan, the branches of an If."""
    return [body for entry in node.attribute for body in ([entry.g] if entry.HasField("g") else entry.graphs)]


def body_macs(node: Any, shapes: Shapes, constants: Mapping[str, Any], macs_of: Callable[[Any, Shapes], int]) -> int:
    """Multiply-adds of the bodies of `node`, times the steps that are known; of branches, the largest counts.

    A Loop whose number of steps depends on the data counts once. A layer whose result has no known shape counts as one
    row.

    Args:
        node: A node after shape inference, which fills in its bodies.
        shapes: Shapes outside of it.
        constants: Constant arrays outside of it.
        macs_of: Counts the multiply-adds of a node without a body.
    """
    counts = [_macs_in(body, shapes, constants, macs_of) for body in bodies_of(node)]
    return _steps(node, shapes, constants) * max(counts, default=0)


def _macs_in(body: Any, outside: Shapes, constants: Mapping[str, Any], macs_of: Callable[[Any, Shapes], int]) -> int:
    typed = [
        value for value in (*body.input, *body.value_info, *body.output) if value.type.tensor_type.HasField("shape")
    ]
    known: dict[str, tuple[int | None, ...]] = {
        value.name: tuple(
            int(dim.dim_value) if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in typed
    }
    shapes = {**outside, **known, **{tensor.name: tuple(tensor.dims) for tensor in body.initializer}}
    total = 0
    for node in body.node:
        if bodies_of(node):
            total += body_macs(node, shapes, constants, macs_of)
            continue
        weights = shapes.get(node.input[1], ()) if node.op_type in WITH_WEIGHTS and len(node.input) > 1 else ()
        total += macs_of(node, shapes) or math.prod(size or 1 for size in weights) * bool(weights)
    return total


def _steps(node: Any, shapes: Shapes, constants: Mapping[str, Any]) -> int:
    attrs = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute if not entry.HasField("g")}
    if node.op_type == "Scan":
        scanned = shapes.get(node.input[-int(attrs["num_scan_inputs"])], ())
        axis = int((attrs.get("scan_input_axes") or [0])[0])
        return (scanned[axis] or 1) if scanned else 1
    if node.op_type == "Loop" and node.input[0] in constants:
        return max(1, min(int(constants[node.input[0]].ravel()[0]), 2**31))
    return 1
