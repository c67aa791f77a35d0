"""Layers as linear problems: samples of inputs and outputs at the same positions, and weights as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.graph.graph import Graph, attributes
from converters.passes.weights import Dense, patch_windows
from edgekit.tensors import Array

SAMPLES, PER_INPUT = 16384, 16  # samples of a layer, and at least this many per input of an output
PRODUCTS = 4e10  # multiply-adds of a layer's sums; wide layers take fewer samples, at least two per input


def sample_count(inputs: int) -> int:
    """How many samples a layer with this many inputs of an output takes."""
    return int(min(max(SAMPLES, PER_INPUT * inputs), max(2 * inputs, PRODUCTS / inputs**2)))


class Linear(Dense):
    """A Conv, Gemm or MatMul whose weights are a matrix (G, O, K) over samples of its input, for G groups.

    Args:
        graph: The graph with the node.
        node: A node for which `is_dense` holds.
    """

    @property
    def grouped_matrix(self) -> Array:
        """Weights (G, O, K), float64."""
        matrix = self.matrix
        grouped: Array = matrix.reshape(self.group, len(matrix) // self.group, matrix.shape[1])
        return grouped

    def bias(self, graph: Graph) -> Array:
        """The bias (G, O), float64; zeros where there is none."""
        name, count = self.bias_name(), len(self.matrix)
        if name is None:
            return np.zeros((self.group, count // self.group))
        value = np.broadcast_to(graph.constants[name].astype(np.float64).ravel(), count)
        return value.reshape(self.group, -1)

    def samples(self, x: Array, most: int, rng: np.random.Generator) -> tuple[Array, Sequence[Array]]:
        """Inputs (n, G, K) at about `most` positions of `x`, and the indices of these positions."""
        if self.node.op_type != "Conv":
            flat = x.reshape(-1, x.shape[-1])
            picked = _picked(len(flat), most, rng)
            return flat[picked][:, None, :], [picked]
        kernel = self._weights.shape[2:]
        windows = patch_windows(x, kernel, self._attributes)
        rank, rows = len(kernel), len(x)
        sizes = windows.shape[2 : 2 + rank]
        picked = _picked(int(np.prod(sizes)), -(-most // rows), rng)
        places = np.unravel_index(picked, sizes)
        chosen = np.moveaxis(_at(windows, places), 2, 1)
        return chosen.reshape(rows * len(picked), self.group, -1), places

    def outputs_at(self, y: Array, places: Sequence[Array]) -> Array:
        """Outputs (n, G, O) of `y` at the positions that `samples` gave."""
        if self.node.op_type != "Conv":
            flat = y.reshape(-1, y.shape[-1])[places[0]]
            return flat[:, None, :]
        chosen = np.moveaxis(_at(y, places), 2, 1)
        return chosen.reshape(-1, self.group, y.shape[1] // self.group)


def reader_inputs(node: Any, x: Array, most: int, rng: np.random.Generator) -> Array:
    """Inputs (n, C) of a layer by channel, at about `most` positions of its operand `x`."""
    images = node.op_type in ("Conv", "ConvTranspose")
    flat = (np.moveaxis(x, 1, -1) if images else x).reshape(-1, x.shape[1] if images else x.shape[-1])
    return flat[_picked(len(flat), most, rng)]


def channel_weights(graph: Graph, node: Any) -> Array:
    """The weights of a layer of group 1 by input channel (outputs and taps, C), float64."""
    weights: Array = graph.constants[node.input[1]].astype(np.float64)
    if node.op_type == "ConvTranspose":
        weights = weights.reshape(len(weights), -1).T
    elif node.op_type == "Conv":
        weights = np.moveaxis(weights, 1, -1).reshape(-1, weights.shape[1])
    elif node.op_type in ("LSTM", "GRU", "RNN"):
        weights = weights.reshape(-1, weights.shape[-1])
    elif not attributes(node).get("transB"):
        weights = weights.T
    return weights


def _at(values: Array, places: Sequence[Array]) -> Array:
    """`values` (N, C, positions ..., more ...) at some positions (N, C, n, more ...)."""
    index: Any = (slice(None), slice(None), *places)
    chosen: Array = values[index]
    return chosen


def _picked(count: int, most: int, rng: np.random.Generator) -> Array:
    return np.sort(rng.choice(count, most, replace=False)) if count > most else np.arange(count)
