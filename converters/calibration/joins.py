"""Finds Concats whose parts are too different for one 8-bit scale, such as boxes in pixels and scores from 0 to 1.

The scale of a joined tensor covers the range of its widest part. A part with a share s of this range keeps s * 255 of
255 steps. Below LEAST_STEPS steps, half a step is about 1 % of the part's own range: as much as 8 bits usually take
from a whole network, lost in one place. Such parts must not share a scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.graph.graph import Graph, attributes, label

STEPS, LEAST_STEPS = 255, 64
PASSED_ON = (  # operators that pass the values of parts on
    "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "Identity", "MaxPool", "Relu", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
QUANTIZED_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Ranges = Mapping[str, tuple[float, float]]


def reach(graph: Graph, name: str, ranges: Ranges) -> float | None:
    """Width of the range of tensor `name`, with 0 included; None where its values are unknown."""
    low, high = ranges.get(name, (1.0, 0.0))
    value = graph.constants.get(name)
    if value is not None and value.dtype.kind == "f" and value.size:
        low, high = float(value.min()), float(value.max())
    return max(high, 0.0) - min(low, 0.0) if low <= high else None


def alike(reaches: Sequence[float]) -> bool:
    """True where tensors with these range widths may share a scale. A tensor that is always 0 may share any scale."""
    positive = [one for one in reaches if one > 0]
    return not positive or min(positive) * STEPS >= max(positive) * LEAST_STEPS


def is_unlike(graph: Graph, node: Any, ranges: Ranges) -> bool:
    """True where `node` is a Concat whose parts must not share a scale; parts with unknown ranges are ignored."""
    if node.op_type != "Concat":
        return False
    known = [reach(graph, name, ranges) for name in node.input]
    return not alike([one for one in known if one is not None])


def apart(graph: Graph, ranges: Ranges) -> set[str]:
    """Labels of nodes that would give one scale to parts that must not share it, and that can stay float.

    These are the Concats, and the nodes that pass their values on. Where only layers with weights read them, they are
    left out: the shared scale is then the price of an 8-bit layer.
    """
    # By tensor with parts that must not share a scale: labels of the nodes on the path to it.
    mixed: dict[str, set[str]] = {}
    labels: set[str] = set()
    results = {spec.name for spec in graph.outputs}
    for node in graph.nodes:
        paths = [mixed[name] for name in node.input if name in mixed]
        if is_unlike(graph, node, ranges) or (paths and node.op_type in PASSED_ON):
            path = {label(node)}.union(*paths)
            mixed.update(dict.fromkeys(node.output, path))
            if results & set(node.output):
                labels |= path
        elif paths and node.op_type not in QUANTIZED_LAYERS:
            labels |= {label(node)}.union(*paths)
    return labels


def axis_of(node: Any, rank: int) -> int:
    """The axis along which a Concat joins tensors of `rank` axes."""
    return int(attributes(node)["axis"]) % rank
