"""Cross-layer equalization: give the channels between two layers similar ranges, so that one 8-bit scale fits them.

Relu and pooling commute with positive factors. So output channel i of one layer can be divided by s_i, and the next
layer's weights for it multiplied by s_i, without changing the model's outputs (Nagel et al. 2019, "Data-free
quantization through weight equalization and bias correction"). With s_i = sqrt(r_i / w_i), the channel's reach r_i
(largest absolute value) becomes equal to the reach w_i of the weights that read it. With samples, r_i is measured on
the channel's values: if weights have scales per channel, 8 bits must cover that range. Without samples, r_i is the
largest weight that makes the channel.

Through a Concat of channels, each branch is equalized separately. Branches with different ranges, which share one scale
at the next layer, end up with similar ranges.

Clip with an upper bound (Relu6) does not commute with factors, so such pairs are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from converters.data.samples import Samples
from converters.graph.graph import Graph, attributes
from converters.passes.weights import Dense, dense_layers, read_by_one, tensors_of_rows, with_constants
from edgekit.errors import ConversionError
from edgekit.tensors import Array

EQUALIZE_ROWS = 128  # at most this many rows to measure ranges
ROUNDS = 8  # several, because layers inside a chain change with both neighbours
BALANCED = 1.1  # a channel counts as equalized with its readers up to this factor
MAX_FACTOR = 1e3  # limit of a factor: a channel that needs more is nearly dead
ANY_RANK = ("Relu", "LeakyRelu")
IMAGES = (*ANY_RANK, "MaxPool", "AveragePool", "GlobalAveragePool")
FLATTENING = ("Flatten", "Reshape", "Squeeze")


class Pair:
    """A layer and the only layer that reads it; all operators between them commute with factors.

    Args:
        first, second: The layers.
        channels: How many channels the second reads.
        start: Index, among those, of the first layer's first channel; above 0 behind a Concat.
    """

    def __init__(self, first: Dense, second: Dense, channels: int, start: int) -> None:
        self.first, self.second = first, second
        self.channels, self.start = channels, start
        self.factors = np.ones(len(first.matrix))

    @property
    def read(self) -> slice:
        """The first layer's channels among those that the second reads."""
        return slice(self.start, self.start + len(self.first.matrix))


class Equalize:
    """Equalizes every pair of neighbouring layers.

    Args:
        samples: Rows to measure channels on: the model's inputs (N, ...). None uses the weights instead.
    """

    name = "equalize"

    def __init__(self, samples: Samples | None = None) -> None:
        self._samples = samples.take(slice(0, EQUALIZE_ROWS)) if samples is not None else None

    def applies(self, graph: Graph) -> bool:
        """True if there is a pair."""
        return bool(pairs(graph))

    def run(self, graph: Graph) -> Graph:
        """The graph with factors moved between layers.

        Raises:
            ConversionError: The new weights are not all finite.
        """
        all_pairs = pairs(graph)
        reach = {id(pair): one for pair, one in zip(all_pairs, _reach(graph, all_pairs, self._samples), strict=True)}
        matrices = {layer.name: layer.matrix for pair in all_pairs for layer in (pair.first, pair.second)}
        biases = {pair.first.name: _bias(graph, pair.first) for pair in all_pairs}
        for _ in range(ROUNDS):
            for pair in all_pairs:
                first, second = matrices[pair.first.name], matrices[pair.second.name]
                now = np.abs(first).max(axis=1) if self._samples is None else reach[id(pair)] / pair.factors
                factors = _factors(now, _columns(pair, second))
                pair.factors = pair.factors * factors
                matrices[pair.first.name] = first / factors[:, None]
                matrices[pair.second.name] = _scaled(pair, second, factors)
        values: dict[str, Array] = {}
        for pair in all_pairs:
            for layer in (pair.first, pair.second):
                values[layer.weight_name] = layer.weights_of(matrices[layer.name])
            name, bias = pair.first.bias_name(), biases[pair.first.name]
            if name is not None and bias is not None:
                values[name] = (bias / pair.factors).reshape(graph.constants[name].shape).astype(np.float32)
        if not all(np.isfinite(value).all() for value in values.values()):
            raise ConversionError(f"pass {self.name} made weights that are infinite or not numbers")
        return with_constants(graph, values)

    def holds(self, graph: Graph) -> bool:
        """Every pair is equalized, as far as the limit of factors allows."""
        all_pairs = pairs(graph)
        for pair, now in zip(all_pairs, _reach(graph, all_pairs, self._samples), strict=True):
            factors = _factors(now, _columns(pair, pair.second.matrix))
            if np.median(np.maximum(factors, 1 / factors)) > BALANCED:
                return False
        return True


def pairs(graph: Graph) -> list[Pair]:
    """Every pair in order of execution; a layer can be the second of one pair and the first of the next."""
    layers = dense_layers(graph)
    made = {layer.output: layer for layer in layers}
    makers = {name: node for node in graph.nodes for name in node.output}
    result = []
    for second in layers:
        for source, images, start in _sources(graph, makers, second.node.input[0], second.node.op_type == "Conv", 0):
            first = made.get(source)
            if first is None or (first.node.op_type == "Conv") != images:
                continue
            pair = Pair(first, second, _channels(graph, second), start)
            if _fits(graph, pair):
                result.append(pair)
    return result


def _channels(graph: Graph, layer: Dense) -> int:
    """How many channels a layer reads, over all its groups."""
    if layer.node.op_type == "Conv":
        return int(graph.constants[layer.weight_name].shape[1]) * layer.group
    return int(layer.matrix.shape[1])


def _fits(graph: Graph, pair: Pair) -> bool:
    first, second = pair.first, pair.second
    if second.group > 1:  # of grouped layers, only plain depthwise ones
        if not len(first.matrix) == len(second.matrix) == second.group == pair.channels:
            return False
    elif pair.read.stop > pair.channels:
        return False
    names = [first.weight_name, second.weight_name, first.bias_name()]
    return all(name is None or read_by_one(graph, name) for name in names)


def _sources(
    graph: Graph, makers: dict[str, Any], name: str, images: bool, start: int
) -> Iterator[tuple[str, bool, int]]:
    """The tensors from which `name` is computed by operators that commute with factors.

    Yields:
        The tensor's name; True if its channels are on axis 1 (an image); the index in `name` of its first channel.
    """
    results = {value.name for value in graph.outputs}
    while name not in results and len(graph.consumers(name)) == 1 and name in makers:
        node = makers[name]
        if node.op_type == "Concat":
            yield from _branches(graph, makers, node, images, start)
            return
        if not _commutes(graph, node, images):
            yield str(name), images, start
            return
        images = images or node.op_type in FLATTENING
        name = node.input[0]


def _branches(
    graph: Graph, makers: dict[str, Any], node: Any, images: bool, start: int
) -> Iterator[tuple[str, bool, int]]:
    shapes = [graph.shapes.get(name, ()) for name in node.input]
    rank = len(shapes[0])
    axis = 1 if images else rank - 1
    if rank < 2 or int(attributes(node)["axis"]) % rank != axis:
        return
    for name, shape in zip(node.input, shapes, strict=True):
        size = shape[axis] if len(shape) == rank else None
        if size is None:
            return
        if list(node.input).count(name) == 1:
            yield from _sources(graph, makers, name, images, start)
        start += size


def _commutes(graph: Graph, node: Any, images: bool) -> bool:
    if node.op_type in FLATTENING:  # from (1, C, 1, 1) to (1, C): the channels stay the same
        before, after = graph.shapes.get(node.input[0], ()), graph.shapes.get(node.output[0], ())
        return not images and len(after) == 2 and after[1] == before[1] and set(before[2:]) == {1}
    if node.op_type == "LeakyRelu":
        return bool(attributes(node).get("alpha", 0.01) >= 0)
    return node.op_type in (IMAGES if images else ANY_RANK)


def _reach(graph: Graph, all_pairs: list[Pair], samples: Samples | None) -> list[Array]:
    """By pair, the reach of each channel between its layers: the largest absolute value or weight (C,)."""
    if samples is None:
        return [np.abs(pair.first.matrix).max(axis=1) for pair in all_pairs]
    reach = [np.zeros(pair.channels) for pair in all_pairs]
    for values in tensors_of_rows(graph, [pair.second.node.input[0] for pair in all_pairs], samples):
        for i, pair in enumerate(all_pairs):
            node = pair.second.node
            x = values[node.input[0]]
            others = (0, *range(2, x.ndim)) if node.op_type == "Conv" else tuple(range(x.ndim - 1))
            reach[i] = np.maximum(reach[i], np.abs(x).max(axis=others))
    return [one[pair.read] for one, pair in zip(reach, all_pairs, strict=True)]


def _columns(pair: Pair, matrix: Array) -> Array:
    """The largest absolute weight that reads each channel (C,)."""
    if pair.second.group > 1:
        largest: Array = np.abs(matrix).max(axis=1)
        return largest
    largest = np.abs(matrix.reshape(len(matrix), pair.channels, -1)).max(axis=(0, 2))
    return largest[pair.read]


def _scaled(pair: Pair, matrix: Array, factors: Array) -> Array:
    if pair.second.group > 1:
        grouped: Array = matrix * factors[:, None]
        return grouped
    whole = np.ones(pair.channels)
    whole[pair.read] = factors
    plain: Array = matrix * np.repeat(whole, matrix.shape[1] // pair.channels)
    return plain


def _factors(reach: Array, columns: Array) -> Array:
    """The divisor of each channel (C,); 1 for a channel that is dead or not read."""
    alive = (reach > 0) & (columns > 0)
    raw = np.sqrt(np.where(alive, reach, 1.0) / np.where(alive, columns, 1.0))
    clipped: Array = np.clip(raw, 1 / MAX_FACTOR, MAX_FACTOR)
    return clipped


def _bias(graph: Graph, layer: Dense) -> Array | None:
    name = layer.bias_name()
    return graph.constants[name].astype(np.float64).ravel() if name is not None else None
