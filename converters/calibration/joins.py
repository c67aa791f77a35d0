"""Concats whose parts are too unlike to share one 8-bit scale, as boxes in pixels and scores from 0 to 1.

The scale of a tensor that was joined reaches as far as the widest part does, and a part that reaches a share s as far
keeps s * 255 of its 255 steps. Below LEAST_STEPS of them half a step is about 1 % of the part's own reach: as much as
8 bits take from a whole network, lost in one place. Such parts are not to share a scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.graph.graph import Graph, attributes, label

STEPS, LEAST_STEPS = 255, 64
PASSED_ON = (  # the parts are as unlike behind these as before
    "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "Identity", "MaxPool", "Relu", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
QUANTIZED_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Ranges = Mapping[str, tuple[float, float]]


def reach(graph: Graph, name: str, ranges: Ranges) -> float | None:
    """How far an 8-bit scale of the tensor `name` goes, 0 included; None where nothing is known of its values."""
    low, high = ranges.get(name, (1.0, 0.0))
    value = graph.constants.get(name)
    if value is not None and value.dtype.kind == "f" and value.size:
        low, high = float(value.min()), float(value.max())
    return max(high, 0.0) - min(low, 0.0) if low <= high else None


def alike(reaches: Sequence[float]) -> bool:
    """Whether tensors that reach so far may share a scale; one that is always 0 loses nothing by any."""
    some = [one for one in reaches if one > 0]
    return not some or min(some) * STEPS >= max(some) * LEAST_STEPS


def is_unlike(graph: Graph, node: Any, ranges: Ranges) -> bool:
    """Whether `node` is a Concat that joins parts which are not to share a scale, as far as they are known."""
    if node.op_type != "Concat":
        return False
    known = [reach(graph, name, ranges) for name in node.input]
    return not alike([one for one in known if one is not None])


def apart(graph: Graph, ranges: Ranges) -> set[str]:
    """Labels of the nodes that would lay one scale over parts which are not to share it, and need not.

    These are the Concats, and what hands their values on. Where layers with weights are all that reads these, one scale
    is the price of an 8-bit layer, and nothing is left out.
    """
    mixed: dict[str, set[str]] = {}  # tensors that hold unlike parts: the labels on the way to them
    found: set[str] = set()
    results = {spec.name for spec in graph.outputs}
    for node in graph.nodes:
        behind = [mixed[name] for name in node.input if name in mixed]
        if is_unlike(graph, node, ranges) or (behind and node.op_type in PASSED_ON):
            way = {label(node)}.union(*behind)
            mixed.update(dict.fromkeys(node.output, way))
            if results & set(node.output):
                found |= way
        elif behind and node.op_type not in QUANTIZED_LAYERS:
            found |= {label(node)}.union(*behind)
    return found


def axis_of(node: Any, rank: int) -> int:
    """The axis along which a Concat joins tensors of `rank` axes."""
    return int(attributes(node)["axis"]) % rank
