"""Sensitivity of each layer: the loss when only this layer is quantized. A cheap score that orders the search."""

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

MOST_ROWS, LEAST_ROWS = 32, 8
MOST_MACS = 1e12  # of all scores of a model; the scores only order the search, and few large samples suffice for that
LEVELS8, LEVELS4 = 127, 7
RATIOS = (0.6, 0.7, 0.8, 0.9, 1.0)  # shares of the largest weight at which 4-bit weights may be clipped


class Sensitivity(msgspec.Struct, frozen=True):
    """Scores of one layer: divergences (see `divergence`) from the float model where only this layer is quantized.

    Attributes:
        layer: The layer.
        int8: Score with 8-bit weights and an 8-bit input.
        int4: Score with 4-bit weights, rounded to the nearest; None where the layer cannot have 4 bits.
    """

    layer: Layer
    int8: float
    int4: float | None


def float_answers(graph: Graph, samples: Samples, layers: Sequence[Layer]) -> dict[str, Array]:
    """The reference for `sensitivities` of `layers`: answers of `graph` to the first 8 to 32 rows of `samples`.

    Two scores of each layer run the whole graph, so the rows are fewer where a row costs much.
    """
    macs = 2 * len(layers) * sum(layer.macs for layer in layers)
    rows = min(MOST_ROWS, max(LEAST_ROWS, int(MOST_MACS // max(1, macs))))
    return graph.run(samples.take(slice(0, rows)).inputs)


def sensitivities(
    graph: Graph,
    layers: Sequence[Layer],
    samples: Samples,
    calibration: Calibration,
    judged: tuple[str, Sequence[str]],
    expected: Mapping[str, Array],
) -> Iterator[Sensitivity]:
    """Score each of `layers` on the rows of `samples`, the calibration split, that `expected` answers.

    Args:
        graph: The graph with the nodes that `layers` name.
        layers: The layers to score.
        samples: The calibration split.
        calibration: The calibration of `graph`.
        judged: The output that holds class scores, empty without classes, and all outputs that count.
        expected: Result of `float_answers`.
    """
    inputs = samples.take(slice(0, len(next(iter(expected.values()))))).inputs
    nodes = {label(node): node for node in graph.nodes}
    ranges = calibration.ranges()

    def score(model: onnx.ModelProto) -> float:
        return divergence(expected, Graph(model).run(inputs), *judged)

    for layer in layers:
        if layer.name not in nodes:  # fixing the batch merged it into another layer
            continue
        node = nodes[layer.name]
        eight = _with_weights(graph, node, LEVELS8)
        _quantize_input(eight, node, ranges)
        four = score(_with_weights(graph, node, LEVELS4)) if layer.four_bit else None
        yield Sensitivity(layer, score(eight), four)


def rounded(weights: Array, axis: int | None, levels: int) -> Array:
    """`weights` as multiples, up to `levels`, of one scale per channel of `axis` (None: one scale for all)."""
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    largest = np.where(largest == 0, 1.0, largest)
    best, least = weights, np.full(largest.shape, np.inf)
    for ratio in RATIOS if levels == LEVELS4 else (1.0,):
        scale = largest * ratio / levels
        quantized = np.clip(np.rint(weights / scale), -levels, levels) * scale
        error = ((quantized - weights) ** 2).sum(axis=others, keepdims=True)
        best, least = np.where(error < least, quantized, best), np.minimum(error, least)
    result: Array = best.astype(weights.dtype)
    return result


def _with_weights(graph: Graph, node: Any, levels: int) -> onnx.ModelProto:
    """A copy of the model with the weights of one node rounded; other nodes keep the shared weights as they are."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    copy = next(n for n in model.graph.node if label(n) == label(node))
    for index in (1, 2) if node.op_type in ("LSTM", "GRU", "RNN") else (1,):
        name = copy.input[index]
        if name not in graph.constants:
            continue
        values = rounded(graph.constants[name], _channel_axis(node), levels)
        copy.input[index] = f"{name}/rounded"
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
    """Insert an 8-bit quantization before the node's input, with the calibrated range."""
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
    index = next(i for i, n in enumerate(model.graph.node) if label(n) == label(node))
    parameters = [f"{stem}/scale", f"{stem}/zero"]
    model.graph.node.insert(index, helper.make_node("DequantizeLinear", [f"{stem}/q", *parameters], [f"{stem}/x"]))
    model.graph.node.insert(index, helper.make_node("QuantizeLinear", [name, *parameters], [f"{stem}/q"]))
    model.graph.node[index + 2].input[0] = f"{stem}/x"
