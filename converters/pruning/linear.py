"""Layers as linear problems: samples of inputs and outputs at the same positions, and weights as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.graph.graph import Graph, attributes
from converters.passes.weights import Dense, is_dense, patch_windows
from edgekit.tensors import Array

IMAGES = ("Conv", "ConvTranspose")
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
        if self.node.op_type not in IMAGES:
            flat = x.reshape(-1, x.shape[-1])
            picked = _picked(len(flat), most, rng)
            return flat[picked][:, None, :], [picked]
        rows, rank = len(x), self._weights.ndim - 2
        sizes = self._windows(x[:1]).shape[2 : 2 + rank]
        picked = _picked(int(np.prod(sizes)), -(-most // rows), rng)
        places = np.unravel_index(picked, sizes)
        # row by row, because a transposed convolution's windows are of a larger input
        chosen = [np.moveaxis(_at(self._windows(x[row : row + 1]), places), 2, 1) for row in range(rows)]
        return np.concatenate(chosen).reshape(rows * len(picked), self.group, -1), places

    def _windows(self, x: Array) -> Array:
        """A view (N, C, positions ..., kernel ...) of the input `x` of a convolution."""
        return patch_windows(x, self._weights.shape[2:], self._attributes)

    def outputs_at(self, y: Array, places: Sequence[Array]) -> Array:
        """Outputs (n, G, O) of `y` at the positions that `samples` gave."""
        if self.node.op_type not in IMAGES:
            flat = y.reshape(-1, y.shape[-1])[places[0]]
            return flat[:, None, :]
        chosen = np.moveaxis(_at(y, places), 2, 1)
        return chosen.reshape(-1, self.group, y.shape[1] // self.group)


class Transposed(Linear):
    """A transposed convolution of one group: a convolution over its input with zeros between the values.

    Args:
        graph: The graph with the node.
        node: A node for which `is_fitted` holds.
    """

    @property
    def matrix(self) -> Array:
        """Weights (O, K), float64: those of the convolution."""
        weights = np.flip(self._weights, axis=tuple(range(2, self._weights.ndim))).swapaxes(0, 1)
        matrix: Array = weights.astype(np.float64).reshape(len(weights), -1)
        return matrix

    def weights_of(self, matrix: Array) -> Array:
        """`matrix` (O, K) in the shape and dtype of the graph's constant."""
        inputs, outputs, *kernel = self._weights.shape
        weights = matrix.reshape(outputs, inputs, *kernel).swapaxes(0, 1)
        flipped = np.flip(weights, axis=tuple(range(2, weights.ndim)))
        return np.ascontiguousarray(flipped, dtype=self._weights.dtype)

    def _windows(self, x: Array) -> Array:
        kernel, given = self._weights.shape[2:], self._attributes
        rank = len(kernel)
        ones, zeros = [1] * rank, [0] * (2 * rank)
        strides, dilations = list(given.get("strides", ones)), list(given.get("dilations", ones))
        pads, more = list(given.get("pads", zeros)), list(given.get("output_padding", zeros[:rank]))
        wide = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype)
        wide[tuple([slice(None)] * 2 + [slice(None, None, stride) for stride in strides])] = x
        for axis in range(rank):
            reach = dilations[axis] * (kernel[axis] - 1)
            before, after = reach - pads[axis], reach - pads[rank + axis] + more[axis]
            wide = _grown(wide, axis + 2, before, after)
        return patch_windows(wide, kernel, {"dilations": dilations})


def is_fitted(graph: Graph, node: Any) -> bool:
    """True for a layer whose weights can be fitted: one of `is_dense`, or a plain transposed convolution."""
    if node.op_type != "ConvTranspose":
        return is_dense(graph, node)
    given = attributes(node)
    plain = given.get("group", 1) == 1 and given.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in given
    return bool(plain and all(name in graph.constants for name in node.input[1:] if name))


def linear_of(graph: Graph, node: Any) -> Linear:
    """The layer of a node for which `is_fitted` holds."""
    return Transposed(graph, node) if node.op_type == "ConvTranspose" else Linear(graph, node)


def reader_inputs(node: Any, x: Array, most: int, rng: np.random.Generator) -> Array:
    """Inputs (n, C) of a layer by channel, at about `most` positions of its operand `x`."""
    images = node.op_type in IMAGES
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


def _grown(values: Array, axis: int, before: int, after: int) -> Array:
    """`values` with zeros at both ends of `axis`; a negative number cuts values off."""
    margins = [(0, 0)] * values.ndim
    margins[axis] = max(before, 0), max(after, 0)
    grown = np.pad(values, margins)
    end = grown.shape[axis] + min(after, 0)
    cut: Array = grown[tuple([slice(None)] * axis + [slice(max(-before, 0), end)])]
    return cut


def _picked(count: int, most: int, rng: np.random.Generator) -> Array:
    return np.sort(rng.choice(count, most, replace=False)) if count > most else np.arange(count)
