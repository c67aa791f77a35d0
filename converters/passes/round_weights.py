"""Round the weights of chosen layers to 4 bits: integers from -7 to 7 times one scale per channel, stored as floats.

The graph stays a float graph, so it can be run, compared and lowered like any other. A quantizer that computes the
scale from the largest weight of a channel gets the same integers again, because every channel reaches 7 or -7.

With samples the pass uses GPTQ (Frantar et al. 2022, "Accurate post-training quantization for generative pre-trained
transformers"). It rounds the weights of one input after another, and changes the remaining weights of the row to
compensate each error. The inputs are those behind the layers rounded so far. Before the rounding, the layer is fitted
to the float layer's outputs (least squares with a ridge towards the old weights). The bias takes the remaining error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import linalg

from converters.data.samples import Samples
from converters.graph.graph import Graph
from converters.passes.stepping import Stepper, chunks_of
from converters.passes.weights import Dense, dense_layers, read_by_one, with_bias, with_constants, with_layer
from edgekit.errors import ConversionError
from edgekit.tensors import Array

INT4_LEVELS = 7  # the largest integer
RATIOS = np.linspace(0.5, 1.0, 26)  # shares of the largest weight at which the scale can clip
RIDGE, DAMPING = 1e-2, 1e-2  # shares of the mean square of a feature
LEAST_ROWS, ROUNDING_ROWS, PLACES = (
    16,
    256,
    16,
)  # rows, fewer where their tensors take much memory; patches read per weight of a channel
WIDEST = 4608  # inputs of one channel; the square matrices of wider layers take too long


class RoundWeights:
    """Rounds the weights of `layers`.

    Args:
        layers: Names of Conv, Gemm or MatMul layers of group 1.
        samples: Rows for GPTQ: the model's inputs (N, ...). None rounds each weight to the nearest level.
    """

    name = "round-weights"

    def __init__(self, layers: Sequence[str], samples: Samples | None = None) -> None:
        self._layers = frozenset(layers)
        self._samples = samples

    def applies(self, graph: Graph) -> bool:
        """True if at least one layer is named.

        Raises:
            ConversionError: A named layer is not in the graph or is not a dense layer of group 1.
        """
        known = {layer.name for layer in dense_layers(graph) if layer.group == 1}
        missing = sorted(self._layers - known)
        if missing:
            raise ConversionError(f"pass {self.name}: no dense layer of group 1 is called {', '.join(missing)}")
        return bool(self._layers)

    def run(self, graph: Graph) -> Graph:
        """The graph with rounded weights and fitted biases."""
        rounded, done = graph, set[str]()
        fit = _Fit(graph, self._samples) if self._samples is not None else None
        for layer in [layer for layer in dense_layers(graph) if layer.name in self._layers]:
            if layer.weight_name in done:
                continue
            done.add(layer.weight_name)
            if fit is not None and layer.matrix.shape[1] <= WIDEST and read_by_one(graph, layer.weight_name):
                rounded = fit.fitted(rounded, layer)
            else:
                matrix = nearest(layer.matrix)
                rounded = with_layer(rounded, layer, matrix, None)
                if fit is not None:
                    fit.set(layer, matrix)
        return rounded

    def holds(self, graph: Graph) -> bool:
        """Every channel of every layer is a scale times integers up to 7, and reaches 7 or is all 0."""
        return all(is_rounded(layer.matrix) for layer in dense_layers(graph) if layer.name in self._layers)


def nearest(matrix: Array) -> Array:
    """`matrix` (O, K) with each weight rounded to the nearest level of the scale with the least squared error."""
    scales = best_scales(matrix)
    rounded: Array = np.clip(np.rint(matrix / scales), -INT4_LEVELS, INT4_LEVELS) * scales
    return rounded


def best_scales(matrix: Array) -> Array:
    """The scale of each channel (O, 1) that rounds `matrix` (O, K) with the least squared error."""
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    largest[largest == 0] = INT4_LEVELS
    best: Array = largest / INT4_LEVELS
    least = np.full(len(matrix), np.inf)
    for ratio in RATIOS:
        scales = largest * ratio / INT4_LEVELS
        error = matrix - np.clip(np.rint(matrix / scales), -INT4_LEVELS, INT4_LEVELS) * scales
        squared = (error**2).sum(axis=1)
        better = squared < least
        best[better], least[better] = scales[better], squared[better]
    return best


def is_rounded(matrix: Array) -> bool:
    """True if each channel of `matrix` (O, K) is a scale times integers from -7 to 7, of which the largest is 7."""
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    levels = matrix * INT4_LEVELS / np.where(largest == 0, 1.0, largest)
    return bool(np.abs(levels - np.rint(levels)).max() < 1e-3)


def gptq(matrix: Array, moments: Array) -> Array:
    """Round `matrix` (O, K) with little output error for `moments` (K, K), the mean of x x^T over inputs x."""
    size = len(moments)
    strength = np.diag(moments)
    damped = moments + np.eye(size) * max(DAMPING * float(strength.mean()), 1e-12)
    order = np.argsort(-strength, kind="stable")  # strongest inputs first: the most weights compensate
    inverse = linalg.cho_solve(linalg.cho_factor(damped[np.ix_(order, order)]), np.eye(size))
    factor = linalg.cholesky(inverse, lower=False)
    work = matrix[:, order]
    scales = best_scales(matrix)
    rounded = np.empty_like(work)
    pending = np.ones(len(matrix), dtype=bool)
    for _ in range(8):  # a channel that does not reach 7 is rounded again with a finer scale
        rounded[pending] = _swept(work[pending], scales[pending], factor)
        reached = np.abs(rounded).max(axis=1)
        pending = (reached < INT4_LEVELS) & (np.abs(matrix).max(axis=1) > 0)
        if not pending.any():
            break
        scales[pending] *= ((reached[pending] + 0.5) / (INT4_LEVELS + 0.5))[:, None]
    result = np.empty_like(work)
    result[:, order] = rounded * scales
    if pending.any():
        result[pending] = nearest(matrix[pending])
    return result


def _swept(work: Array, scales: Array, factor: Array) -> Array:
    """The integers of each row; later weights compensate the errors of earlier ones."""
    left = work.copy()
    integers = np.empty_like(work)
    for column in range(work.shape[1]):
        value = left[:, column : column + 1]
        integers[:, column : column + 1] = np.clip(np.rint(value / scales), -INT4_LEVELS, INT4_LEVELS)
        error = (value - integers[:, column : column + 1] * scales) / factor[column, column]
        left[:, column + 1 :] -= error * factor[column, column + 1 :]
    return integers


class _Fit:
    """Fits and rounds one layer after another.

    Args:
        graph: The float graph.
        samples: The model's inputs (N, ...).
    """

    def __init__(self, graph: Graph, samples: Samples) -> None:
        chunks = chunks_of(graph, samples, least=LEAST_ROWS, most=ROUNDING_ROWS, each=1)
        self._rows = len(chunks)
        self._before, self._behind = Stepper(graph, chunks), Stepper(graph, chunks)

    def fitted(self, rounded: Graph, layer: Dense) -> Graph:
        """Fit a layer of `rounded` to the outputs of the float layer, round it, and fit its bias again."""
        old = layer.matrix
        moments, cross, mean_x, mean_y = self._moments(layer)
        fits_bias = layer.can_have_bias
        if fits_bias:
            moments_fit = moments - np.outer(mean_x, mean_x)
            cross_fit = cross - np.outer(mean_x, mean_y)
        else:
            moments_fit, cross_fit = moments, cross
        ridge = np.eye(len(moments)) * max(RIDGE * float(np.diag(moments).mean()), 1e-12)
        fitted = linalg.solve(moments_fit + ridge, cross_fit + ridge @ old.T, assume_a="pos").T
        matrix = gptq(fitted, moments_fit if fits_bias else moments)
        values, biases = with_bias(rounded, layer, mean_y - matrix @ mean_x) if fits_bias else ({}, {})
        values[layer.weight_name] = layer.weights_of(matrix)
        self._behind.change(values, biases)
        return with_constants(rounded, values, biases)

    def set(self, layer: Dense, matrix: Array) -> None:
        """Tell weights (O, K) that were rounded otherwise."""
        self._behind.change({layer.weight_name: layer.weights_of(matrix)}, {})

    def _moments(self, layer: Dense) -> tuple[Array, Array, Array, Array]:
        """Means of x x^T (K, K), x y^T (K, O), x (K,), y (O,): x from the rounded graph, y from the float graph."""
        outputs, inputs = layer.matrix.shape
        moments, cross = np.zeros((inputs, inputs)), np.zeros((inputs, outputs))
        sum_x, sum_y, count = np.zeros(inputs), np.zeros(outputs), 0
        name = layer.node.input[0]
        for stepper in (self._before, self._behind):
            stepper.value(name)
        per_row = -(-PLACES * max(inputs, 64) // self._rows)
        rng = np.random.default_rng(0)
        for x, y in zip(self._behind.peek(name), self._before.peek(layer.output), strict=True):
            features, results = layer.features(x).astype(np.float64), layer.results(y).astype(np.float64)
            if len(features) > per_row:
                picked = rng.choice(len(features), per_row, replace=False)
                features, results = features[picked], results[picked]
            moments += features.T @ features
            cross += features.T @ results
            sum_x += features.sum(axis=0)
            sum_y += results.sum(axis=0)
            count += len(features)
        return moments / count, cross / count, sum_x / count, sum_y / count
