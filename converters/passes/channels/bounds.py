"""Bounds of the values of each channel for any input, from the weights alone (interval arithmetic).

The arithmetic is in float64. Each interval is widened by more than float32 rounding can change: in a sum of n products,
each product is off by a factor of at most 1 + n u / (1 - n u), with u = 2**-24 (Higham 2002, "Accuracy and Stability of
Numerical Algorithms", section 3.1). Inputs are any finite numbers. An unknown bound is infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converters.graph.graph import attributes
from converters.passes.channels.groups import Channels
from converters.passes.weights import Dense, is_dense
from edgekit.tensors import Array

UNIT = 2.0**-24
SLACK = 4.0  # factor on the float32 error: kernels may split sums and multiply-adds in any order
AVERAGED = 1e-3  # relative widening of a mean, whose terms are not counted: covers ten thousand terms
UNKNOWN_BOUNDS = np.array([-np.inf]), np.array([np.inf])

Interval = tuple[Array, Array]  # smallest and largest value by lane (L,), or of all channels together (1,)


class ChannelBounds:
    """The interval of each tensor's channels.

    Args:
        channels: The channels of the graph.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self._intervals: dict[str, Interval] = {}
        for node in channels.graph.nodes:
            rule = _rules.get(node.op_type)
            for output_index, name in enumerate(node.output):
                interval = rule(self, node, output_index) if rule is not None else UNKNOWN_BOUNDS
                low, high = (
                    np.where(np.isnan(one), wide, one) for one, wide in zip(interval, UNKNOWN_BOUNDS, strict=True)
                )
                self._intervals[name] = low, high

    def alive(self) -> dict[str, Array]:
        """By tensor: True at each of its lanes (L,) whose value can differ from 0."""
        alive = {}
        for name, lanes in self.channels.lanes.items():
            low, high = self.of(name, lanes.axis, len(lanes.ids))
            alive[name] = ~((low == 0) & (high == 0))
        return alive

    def of(self, name: str, axis: int, count: int) -> Interval:
        """The intervals of a tensor's values at `count` indices along `axis`; all equal if its lanes lie elsewhere."""
        low, high = self._intervals.get(name, UNKNOWN_BOUNDS)
        lanes = self.channels.lanes.get(name)
        if lanes is None or lanes.axis != axis or len(low) != count:
            low, high = low.min(keepdims=True), high.max(keepdims=True)
        return np.broadcast_to(low, count), np.broadcast_to(high, count)

    def along(self, name: str, output: str) -> Interval:
        """The intervals of one input of an elementwise node, by the lanes of the node's output (L,), or (1,)."""
        lanes, constants = self.channels.lanes.get(output), self.channels.graph.constants
        count = len(lanes.ids) if lanes is not None else 1
        if name not in constants:
            own = self.channels.lanes.get(name)
            moved = own is not None and lanes is not None and own.ids is lanes.ids  # to another axis
            source = own if moved else lanes
            return self.of(name, source.axis if source is not None else 0, count)
        value = constants[name].astype(np.float64)
        rank = len(self.channels.sizes.get(output, ()))
        axis = lanes.axis - (rank - value.ndim) if lanes is not None else -1
        if axis < 0 or value.shape[axis] != count:
            return np.full(count, value.min()), np.full(count, value.max())
        others = tuple(i for i in range(value.ndim) if i != axis)
        return value.min(axis=others), value.max(axis=others)


def _dense(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    """The bias plus the sum of the smallest and of the largest products w x. With padding, x can also be 0."""
    graph = bounds.channels.graph
    if not is_dense(graph, node) or node.output[0] not in bounds.channels.lanes:
        return UNKNOWN_BOUNDS
    layer = Dense(graph, node)
    weights = layer.matrix
    inputs = graph.constants[node.input[1]].shape[1] if node.op_type == "Conv" else weights.shape[1]
    axis = 1 if node.op_type == "Conv" else len(bounds.channels.sizes[node.input[0]]) - 1
    low, high = bounds.of(node.input[0], axis, inputs * layer.group)
    if node.op_type == "Conv":
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    taps = weights.reshape(len(weights), inputs, -1)
    if layer.group > 1:
        groups = np.repeat(np.arange(layer.group), len(weights) // layer.group)
        low, high = (one.reshape(layer.group, inputs)[groups][:, :, None] for one in (low, high))
    else:
        low, high = (one[None, :, None] for one in (low, high))
    least, most = _products(taps, low, high)
    name = layer.bias_name() if node.op_type != "MatMul" else None
    bias = graph.constants[name].astype(np.float64).ravel() if name else np.zeros(1)
    share = SLACK * (taps[0].size + 2) * UNIT
    (least, most), (below, above) = _wider(least, most, share), _wider(bias, bias, share)
    return least.sum(axis=(1, 2)) + below, most.sum(axis=(1, 2)) + above


def _products(factor: Array, low: Array, high: Array) -> Interval:
    """The smallest and largest `factor` * x for x from `low` to `high`; 0 times infinity counts as 0."""
    with np.errstate(invalid="ignore"):
        ends = [np.where((factor == 0) | (end == 0), 0.0, factor * end) for end in (low, high)]
    return np.minimum(*ends), np.maximum(*ends)


def _wider(low: Array, high: Array, share: float) -> Interval:
    return low - share * np.abs(low), high + share * np.abs(high)


def _added(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    first, second = (bounds.along(name, node.output[0]) for name in node.input[:2])
    if node.op_type == "Sub":
        second = -second[1], -second[0]
    with np.errstate(invalid="ignore"):
        return _wider(first[0] + second[0], first[1] + second[1], 2 * UNIT)


def _multiplied(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    first, second = (bounds.along(name, node.output[0]) for name in node.input)
    ends = [_products(end, *second) for end in first]
    return _wider(np.minimum(ends[0][0], ends[1][0]), np.maximum(ends[0][1], ends[1][1]), 2 * UNIT)


def _increasing(change: Callable[[Array, dict[str, Any]], Array]) -> Rule:
    """The rule of a monotonically increasing function: it maps the ends of the interval."""

    def rule(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
        low, high = bounds.along(node.input[0], node.output[0])
        given = attributes(node)
        return _wider(change(low, given), change(high, given), 4 * UNIT)

    return rule


def _clipped(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    low, high = bounds.along(node.input[0], node.output[0])
    constants, given = bounds.channels.graph.constants, list(node.input[1:])
    ends = [float(constants[name].item()) if name in constants else None for name in given]
    if any(name and end is None for name, end in zip(given, ends, strict=True)):
        return UNKNOWN_BOUNDS
    smallest, largest = (*ends, None, None)[:2]
    for bound, pick in ((smallest, np.maximum), (largest, np.minimum)):
        low, high = (low, high) if bound is None else (pick(low, bound), pick(high, bound))
    return low, high


def _leaky(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    alpha = float(attributes(node).get("alpha", 0.01))
    rule = _increasing(lambda x, given: np.where(x >= 0, x, alpha * x))
    return rule(bounds, node, output_index) if alpha > 0 else UNKNOWN_BOUNDS


def _hard_sigmoid(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    low, high = bounds.along(node.input[0], node.output[0])
    given = attributes(node)
    alpha, beta = float(given.get("alpha", 0.2)), float(given.get("beta", 0.5))
    if alpha <= 0:
        return UNKNOWN_BOUNDS
    margin = SLACK * UNIT * (abs(beta) + alpha * np.where(np.isfinite(high), np.abs(high), 0.0))
    return np.clip(alpha * low + beta - margin, 0.0, 1.0), np.clip(alpha * high + beta + margin, 0.0, 1.0)


def _hard_swish(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    """HardSwish is x * clip(x / 6 + 1 / 2, 0, 1): 0 up to -3, and never below -3 / 8."""
    _, high = bounds.along(node.input[0], node.output[0])
    dead = high < -3.0 - 1e-4
    return np.where(dead, 0.0, -0.376), np.where(dead, 0.0, np.maximum(high, 0.0) * (1 + 1e-4))


def _averaged(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    """A mean, possibly over padding: from the smallest to the largest value, 0 included."""
    low, high = bounds.along(node.input[0], node.output[0])
    return _wider(np.minimum(low, 0.0), np.maximum(high, 0.0), AVERAGED)


def _resized(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    return (
        _averaged(bounds, node, output_index) if attributes(node).get("mode", "nearest") != "cubic" else UNKNOWN_BOUNDS
    )


def _concatenated(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    lanes = bounds.channels.lanes.get(node.output[0])
    rank = len(bounds.channels.sizes.get(node.output[0], ()))
    if lanes is None or int(attributes(node)["axis"]) % rank != lanes.axis:
        parts = [bounds.along(name, node.output[0]) for name in node.input]
        return np.minimum.reduce([low for low, _ in parts]), np.maximum.reduce([high for _, high in parts])
    sizes = [bounds.channels.sizes[name][lanes.axis] or 0 for name in node.input]
    parts = [bounds.of(name, lanes.axis, size) for name, size in zip(node.input, sizes, strict=True)]
    return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])


def _reshaped(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    origin = bounds.channels.origins.get(node.output[0])
    if origin is None:
        return bounds.of(node.input[0], 0, 1)
    lanes = bounds.channels.lanes[node.input[0]]
    low, high = bounds.of(node.input[0], lanes.axis, len(lanes.ids))
    return low[origin], high[origin]


def _split(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    channels, output = bounds.channels, node.output[output_index]
    whole, part = channels.lanes.get(node.input[0]), channels.lanes.get(output)
    if whole is None or part is None or len(whole.ids) == len(part.ids):
        return bounds.along(node.input[0], output) if part is not None else bounds.of(node.input[0], 0, 1)
    low, high = bounds.of(node.input[0], whole.axis, len(whole.ids))
    start = sum(len(channels.lanes[name].ids) for name in node.output[:output_index])
    return low[start : start + len(part.ids)], high[start : start + len(part.ids)]


def _padded(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    low, high = bounds.along(node.input[0], node.output[0])
    if attributes(node).get("mode", "constant") != "constant":
        return low, high
    name, constants = node.input[2] if len(node.input) > 2 else "", bounds.channels.graph.constants
    if name and name not in constants:
        return UNKNOWN_BOUNDS
    value = float(constants[name].item()) if name else 0.0
    return np.minimum(low, value), np.maximum(high, value)


def _same(bounds: ChannelBounds, node: Any, output_index: int) -> Interval:
    return bounds.along(node.input[0], node.output[output_index])


Rule = Callable[[ChannelBounds, Any, int], Interval]
_rules: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "Gemm", "MatMul"), _dense),
    **dict.fromkeys(("Add", "Sub"), _added),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), _averaged),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(("GlobalMaxPool", "Identity", "MaxPool", "ReduceMax", "ReduceMin", "Transpose"), _same),
    "Clip": _clipped,
    "Concat": _concatenated,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky,
    "Mul": _multiplied,
    "Pad": _padded,
    "Relu": _increasing(lambda x, given: np.maximum(x, 0.0)),
    "Resize": _resized,
    "Split": _split,
    "Sigmoid": lambda bounds, node, output_index: (np.zeros(1), np.ones(1)),
    "Tanh": lambda bounds, node, output_index: (-np.ones(1), np.ones(1)),
}
