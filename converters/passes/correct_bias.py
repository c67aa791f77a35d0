"""Correct each bias for the shift of the channel's mean that rounding the weights causes.

Quantized weights shift the mean of a layer's outputs, and shifts add up from layer to layer (Nagel et al. 2019, as in
equalize.py). The pass goes layer by layer. It compares the mean with rounded weights, after the layers corrected so
far, with the mean of the float model on samples, and adds the difference to the bias. It does not change the weights;
the quantizer rounds them later.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from converters.data.samples import Samples
from converters.graph.graph import Graph
from converters.passes.stepping import Stepper, chunks_of
from converters.passes.weights import Dense, dense_layers, read_by_one, with_bias, with_constants, with_layer
from edgekit.tensors import Array

LEAST_ROWS, BIAS_ROWS = 16, 64  # rows for the means: fewer where their tensors take much memory
INT8_LEVELS = 127


class CorrectBias:
    """Corrects the bias of every layer that can have one.

    Args:
        samples: Rows for the means: the model's inputs (N, ...).
        exact: Names of layers whose weights the quantizer does not round.
        per_channel: True if weights get one scale per output channel, False if one per layer.
    """

    name = "correct-bias"

    def __init__(self, samples: Samples, *, exact: Collection[str] = (), per_channel: bool = True) -> None:
        self._samples = samples
        self._exact = frozenset(exact)
        self._per_channel = per_channel
        self._weights: dict[str, Array] = {}

    def applies(self, graph: Graph) -> bool:
        """True if a layer has a bias of its own or can get one."""
        return bool(_correctable(graph))

    def run(self, graph: Graph) -> Graph:
        """The graph with corrected biases."""
        self._weights = {layer.weight_name: layer.matrix for layer in dense_layers(graph)}
        rounded, corrected = graph, graph
        for layer in dense_layers(graph):
            if layer.name not in self._exact:
                rounded = with_layer(rounded, layer, rounded_8(layer.matrix, per_channel=self._per_channel), None)
        chunks = chunks_of(graph, self._samples, least=LEAST_ROWS, most=BIAS_ROWS, each=1)
        before, behind = Stepper(graph, chunks), Stepper(rounded, chunks)
        for layer in _correctable(graph):
            shift = _mean(before, layer) - _mean(behind, layer)
            name = layer.bias_name()
            old = np.zeros(len(shift)) if name is None else graph.constants[name].astype(np.float64).ravel()
            values, biases = with_bias(graph, layer, old + shift)
            behind.change(values, biases)
            corrected = with_constants(corrected, values, biases)
        return corrected

    def holds(self, graph: Graph) -> bool:
        """No weight changed."""
        weights = {layer.weight_name: layer.matrix for layer in dense_layers(graph)}
        return all(np.array_equal(weights[name], matrix) for name, matrix in self._weights.items())


def rounded_8(matrix: Array, *, per_channel: bool) -> Array:
    """`matrix` (O, K) rounded to 255 symmetric levels, as backends round it."""
    largest = np.abs(matrix).max(axis=1, keepdims=True) if per_channel else np.abs(matrix).max(keepdims=True)
    scale = np.where(largest == 0, 1.0, largest) / INT8_LEVELS
    rounded: Array = np.rint(matrix / scale) * scale
    return rounded


def _correctable(graph: Graph) -> list[Dense]:
    return [
        layer
        for layer in dense_layers(graph)
        if layer.can_have_bias and ((name := layer.bias_name()) is None or read_by_one(graph, name))
    ]


def _mean(stepper: Stepper, layer: Dense) -> Array:
    """The mean of each output channel over all rows (O,); the stepper moves to the layer's input."""
    stepper.value(layer.node.input[0])
    total, count = np.zeros(len(layer.matrix)), 0
    for y in stepper.peek(layer.output):
        results = layer.results(y)
        total += results.sum(axis=0, dtype=np.float64)
        count += len(results)
    return total / count
