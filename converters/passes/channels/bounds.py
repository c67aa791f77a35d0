"""What values channels can take whatever the input is: intervals, from the weights alone.

Interval arithmetic in float64, widened by more than float32 can lose: in a sum of n products each is off by a factor of
at most 1 + n u / (1 - n u), with u = 2**-24 (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section
3.1). Inputs are any finite numbers; where nothing is known a bound is infinite.
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
SLACK = 4.0  # times what float32 loses: kernels may split sums and multiply-adds as they like
AVERAGED = 1e-3  # of a mean, whose terms were not counted: good for ten thousand
UNKNOWN = np.array([-np.inf]), np.array([np.inf])

Interval = tuple[Array, Array]  # smallest and largest value along the lanes (L,), or of all channels (1,)


class ChannelBounds:
    """The interval of each tensor's channels.

    Args:
        channels: Of the graph.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self._found: dict[str, Interval] = {}
        for node in channels.graph.nodes:
            rule = _rules.get(node.op_type)
            for place, name in enumerate(node.output):
                found = rule(self, node, place) if rule is not None else UNKNOWN
                low, high = (np.where(np.isnan(one), wide, one) for one, wide in zip(found, UNKNOWN, strict=True))
                self._found[name] = low, high

    def alive(self) -> dict[str, Array]:
        """By tensor, True at each of its lanes (L,) that can be anything but 0."""
        found = {}
        for name, lanes in self.channels.lanes.items():
            low, high = self.of(name, lanes.axis, len(lanes.ids))
            found[name] = ~((low == 0) & (high == 0))
        return found

    def of(self, name: str, axis: int, count: int) -> Interval:
        """The interval of a tensor's values at each of `count` places (L,) along `axis`; one for all if not known."""
        low, high = self._found.get(name, UNKNOWN)
        lanes = self.channels.lanes.get(name)
        if lanes is None or lanes.axis != axis or len(low) != count:
            low, high = low.min(keepdims=True), high.max(keepdims=True)
        return np.broadcast_to(low, count), np.broadcast_to(high, count)

    def along(self, name: str, output: str) -> Interval:
        """The interval of one input of an elementwise node along the lanes of its output (L,), or (1,)."""
        lanes, constants = self.channels.lanes.get(output), self.channels.graph.constants
        count = len(lanes.ids) if lanes is not None else 1
        if name not in constants:
            own = self.channels.lanes.get(name)
            moved = own is not None and lanes is not None and own.ids is lanes.ids  # to another axis
            found = own if moved else lanes
            return self.of(name, found.axis if found is not None else 0, count)
        value = constants[name].astype(np.float64)
        rank = len(self.channels.sizes.get(output, ()))
        axis = lanes.axis - (rank - value.ndim) if lanes is not None else -1
        if axis < 0 or value.shape[axis] != count:
            return np.full(count, value.min()), np.full(count, value.max())
        others = tuple(i for i in range(value.ndim) if i != axis)
        return value.min(axis=others), value.max(axis=others)


def _dense(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    """The bias and the sum of w x, each product at its least and most; padding adds 0 to what x can be."""
    graph = bounds.channels.graph
    if not is_dense(graph, node) or node.output[0] not in bounds.channels.lanes:
        return UNKNOWN
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
    """The least and most of `factor` times what is between `low` and `high`; 0 times anything is 0."""
    with np.errstate(invalid="ignore"):
        ends = [np.where((factor == 0) | (end == 0), 0.0, factor * end) for end in (low, high)]
    return np.minimum(*ends), np.maximum(*ends)


def _wider(low: Array, high: Array, share: float) -> Interval:
    return low - share * np.abs(low), high + share * np.abs(high)


def _added(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    first, second = (bounds.along(name, node.output[0]) for name in node.input[:2])
    if node.op_type == "Sub":
        second = -second[1], -second[0]
    with np.errstate(invalid="ignore"):
        return _wider(first[0] + second[0], first[1] + second[1], 2 * UNIT)


def _multiplied(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    first, second = (bounds.along(name, node.output[0]) for name in node.input)
    ends = [_products(end, *second) for end in first]
    return _wider(np.minimum(ends[0][0], ends[1][0]), np.maximum(ends[0][1], ends[1][1]), 2 * UNIT)


def _through(change: Callable[[Array, dict[str, Any]], Array]) -> Rule:
    """For functions that never fall: the ends of the interval go through them."""

    def rule(bounds: ChannelBounds, node: Any, place: int) -> Interval:
        low, high = bounds.along(node.input[0], node.output[0])
        told = attributes(node)
        return _wider(change(low, told), change(high, told), 4 * UNIT)

    return rule


def _clipped(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    low, high = bounds.along(node.input[0], node.output[0])
    constants, told = bounds.channels.graph.constants, list(node.input[1:])
    ends = [float(constants[name].item()) if name in constants else None for name in told]
    if any(name and end is None for name, end in zip(told, ends, strict=True)):
        return UNKNOWN
    smallest, largest = (*ends, None, None)[:2]
    for bound, pick in ((smallest, np.maximum), (largest, np.minimum)):
        low, high = (low, high) if bound is None else (pick(low, bound), pick(high, bound))
    return low, high


def _leaky(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    alpha = float(attributes(node).get("alpha", 0.01))
    rule = _through(lambda x, told: np.where(x >= 0, x, alpha * x))
    return rule(bounds, node, place) if alpha > 0 else UNKNOWN


def _hard_sigmoid(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    low, high = bounds.along(node.input[0], node.output[0])
    told = attributes(node)
    alpha, beta = float(told.get("alpha", 0.2)), float(told.get("beta", 0.5))
    if alpha <= 0:
        return UNKNOWN
    margin = SLACK * UNIT * (abs(beta) + alpha * np.where(np.isfinite(high), np.abs(high), 0.0))
    return np.clip(alpha * low + beta - margin, 0.0, 1.0), np.clip(alpha * high + beta + margin, 0.0, 1.0)


def _hard_swish(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    """HardSwish is x * clip(x / 6 + 1 / 2, 0, 1): 0 up to -3, and never below -3 / 8."""
    _, high = bounds.along(node.input[0], node.output[0])
    dead = high < -3.0 - 1e-4
    return np.where(dead, 0.0, -0.376), np.where(dead, 0.0, np.maximum(high, 0.0) * (1 + 1e-4))


def _averaged(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    """Means, and what pads: between the smallest and the largest, or 0."""
    low, high = bounds.along(node.input[0], node.output[0])
    return _wider(np.minimum(low, 0.0), np.maximum(high, 0.0), AVERAGED)


def _resized(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    return _averaged(bounds, node, place) if attributes(node).get("mode", "nearest") != "cubic" else UNKNOWN


def _concatenated(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    lanes = bounds.channels.lanes.get(node.output[0])
    rank = len(bounds.channels.sizes.get(node.output[0], ()))
    if lanes is None or int(attributes(node)["axis"]) % rank != lanes.axis:
        parts = [bounds.along(name, node.output[0]) for name in node.input]
        return np.minimum.reduce([low for low, _ in parts]), np.maximum.reduce([high for _, high in parts])
    sizes = [bounds.channels.sizes[name][lanes.axis] or 0 for name in node.input]
    parts = [bounds.of(name, lanes.axis, size) for name, size in zip(node.input, sizes, strict=True)]
    return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])


def _reshaped(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    origin = bounds.channels.origins.get(node.output[0])
    if origin is None:
        return bounds.of(node.input[0], 0, 1)
    lanes = bounds.channels.lanes[node.input[0]]
    low, high = bounds.of(node.input[0], lanes.axis, len(lanes.ids))
    return low[origin], high[origin]


def _split(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    channels, output = bounds.channels, node.output[place]
    whole, part = channels.lanes.get(node.input[0]), channels.lanes.get(output)
    if whole is None or part is None or len(whole.ids) == len(part.ids):
        return bounds.along(node.input[0], output) if part is not None else bounds.of(node.input[0], 0, 1)
    low, high = bounds.of(node.input[0], whole.axis, len(whole.ids))
    start = sum(len(channels.lanes[name].ids) for name in node.output[:place])
    return low[start : start + len(part.ids)], high[start : start + len(part.ids)]


def _padded(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    low, high = bounds.along(node.input[0], node.output[0])
    if attributes(node).get("mode", "constant") != "constant":
        return low, high
    name, constants = node.input[2] if len(node.input) > 2 else "", bounds.channels.graph.constants
    if name and name not in constants:
        return UNKNOWN
    value = float(constants[name].item()) if name else 0.0
    return np.minimum(low, value), np.maximum(high, value)


def _same(bounds: ChannelBounds, node: Any, place: int) -> Interval:
    return bounds.along(node.input[0], node.output[place])


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
    "Relu": _through(lambda x, told: np.maximum(x, 0.0)),
    "Resize": _resized,
    "Split": _split,
    "Sigmoid": lambda bounds, node, place: (np.zeros(1), np.ones(1)),
    "Tanh": lambda bounds, node, place: (-np.ones(1), np.ones(1)),
}
