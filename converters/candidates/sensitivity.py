"""What each layer loses when it alone is quantized: a cheap score, which only says what to try first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.backends.layers import Layer
from converters.calibration.calibrate import Calibration
from converters.data.samples import Samples
from converters.graph.graph import Graph, attributes, label
from converters.quality.divergence import divergence
from edgekit.tensors import Array

ROWS = 32
LEVELS8, LEVELS4 = 127, 7
RATIOS = (0.6, 0.7, 0.8, 0.9, 1.0)  # of the largest weight: where the scale of 4 bits may be clipped


class Sensitivity(msgspec.Struct, frozen=True):
    """One layer's scores: distances (see `divergence`) from the float model with this layer alone quantized.

    Attributes:
        layer: What it is.
        int8: With 8-bit weights and an 8-bit input.
        int4: With 4-bit weights, rounded to the nearest; None where it cannot have them.
    """

    layer: Layer
    int8: float
    int4: float | None


def float_answers(graph: Graph, samples: Samples) -> dict[str, Array]:
    """What `sensitivities` compares with: the answers of `graph` to the first rows of `samples`."""
    return graph.run(samples.take(slice(0, ROWS)).inputs)


def sensitivities(
    graph: Graph,
    layers: Sequence[Layer],
    samples: Samples,
    calibration: Calibration,
    decision: str,
    expected: Mapping[str, Array],
) -> Iterator[Sensitivity]:
    """Score each of `layers` on the first rows of `samples`, the calibration split; one after the other.

    Args:
        graph: With the nodes that `layers` name.
        decision: The output that holds scores, or empty.
        expected: As `float_answers`.
    """
    inputs = samples.take(slice(0, ROWS)).inputs
    nodes = {label(node): node for node in graph.nodes}
    ranges = calibration.ranges()

    def distance(model: onnx.ModelProto) -> float:
        return divergence(expected, Graph(model).run(inputs), decision)

    for layer in layers:
        if layer.name not in nodes:  # fixing the batch folded it into another
            continue
        node = nodes[layer.name]
        eight = _with_weights(graph, node, LEVELS8)
        _quantize_input(eight, node, ranges)
        four = distance(_with_weights(graph, node, LEVELS4)) if layer.four_bit else None
        yield Sensitivity(layer, distance(eight), four)


def rounded(weights: Array, axis: int | None, levels: int) -> Array:
    """`weights` as whole numbers up to `levels` times one scale a channel of `axis` (None: one for all)."""
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    largest = np.where(largest == 0, 1.0, largest)
    best, least = weights, np.full(largest.shape, np.inf)
    for ratio in RATIOS if levels == LEVELS4 else (1.0,):
        scale = largest * ratio / levels
        found = np.clip(np.rint(weights / scale), -levels, levels) * scale
        error = ((found - weights) ** 2).sum(axis=others, keepdims=True)
        best, least = np.where(error < least, found, best), np.minimum(error, least)
    result: Array = best.astype(weights.dtype)
    return result


def _with_weights(graph: Graph, node: Any, levels: int) -> onnx.ModelProto:
    """A copy of the model with one node's weights rounded; other readers of the same weights keep them."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    copy = next(n for n in model.graph.node if label(n) == label(node))
    for place in (1, 2) if node.op_type in ("LSTM", "GRU", "RNN") else (1,):
        name = copy.input[place]
        if name not in graph.constants:
            continue
        values = rounded(graph.constants[name], _channel_axis(node), levels)
        copy.input[place] = f"{name}/rounded"
        model.graph.initializer.append(numpy_helper.from_array(values, f"{name}/rounded"))
    return model


def _channel_axis(node: Any) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB") else 1
    return None


def _quantize_input(model: onnx.ModelProto, node: Any, ranges: dict[str, tuple[float, float]]) -> None:
    """Put an 8-bit quantization before the node's input, by the range that was measured."""
    name = node.input[0]
    if name not in ranges:
        return
    low, high = min(0.0, ranges[name][0]), max(0.0, ranges[name][1])
    scale = max((high - low) / 255.0, 1e-12)
    zero = int(np.clip(round(-128 - low / scale), -128, 127))
    stem = f"{name}/eight"
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(scale, dtype=np.float32), f"{stem}/scale"),
            numpy_helper.from_array(np.array(zero, dtype=np.int8), f"{stem}/zero"),
        ]
    )
    place = next(i for i, n in enumerate(model.graph.node) if label(n) == label(node))
    parameters = [f"{stem}/scale", f"{stem}/zero"]
    model.graph.node.insert(place, helper.make_node("DequantizeLinear", [f"{stem}/q", *parameters], [f"{stem}/x"]))
    model.graph.node.insert(place, helper.make_node("QuantizeLinear", [name, *parameters], [f"{stem}/q"]))
    model.graph.node[place + 2].input[0] = f"{stem}/x"
