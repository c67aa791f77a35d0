"""Refit of every layer of a pruned graph, one after another, to the outputs of the same layer of the original graph.

The inputs of a layer are those behind the layers fitted so far, so each layer makes good for what the ones before it
lost. No labels are needed. A fit that is not better on held-out rows is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from converters.graph.graph import Graph, label
from converters.passes.channels.groups import Channels
from converters.passes.stepping import Stepper
from converters.passes.weights import read_by_one, with_constants
from converters.pruning.least_squares import Fit, Sums, fit
from converters.pruning.linear import IMAGES, Linear, is_fitted, linear_of, sample_count
from edgekit.tensors import Array

FOLDS = 5  # of the cross-validation over chunks
WIDEST = 2400  # inputs of one output; wider layers are not fitted
EXACT = 1e-10  # share of the outputs' squares below which nothing has to be fitted


class LayerFit(msgspec.Struct, frozen=True):
    """The fit of one layer: mean squared errors on held-out samples `before` and `after`, and its ridge."""

    layer: str
    before: float
    after: float
    ridge: float


class Refit(msgspec.Struct, frozen=True):
    """A refitted graph, the fits that were used, and its answers (N, ...) to the rows of the chunks."""

    graph: Graph
    fits: tuple[LayerFit, ...]
    answers: dict[str, Array]


def refit(
    channels: Channels, removed: Array, pruned: Graph, chunks: Sequence[Mapping[str, Array]], seed: int = 0
) -> Refit:
    """Fit the layers of `pruned`.

    Args:
        channels: The channels of the original graph.
        removed: The channels (n,), bool, that `pruned` lacks.
        pruned: The original graph without them.
        chunks: Inputs, in chunks of rows.
        seed: Seed of the sampled positions.
    """
    original = channels.graph
    before, after = Stepper(original, chunks), Stepper(pruned, chunks)
    nodes = {node.output[0]: node for node in original.nodes}
    rng = np.random.default_rng(seed)
    fits: list[LayerFit] = []
    values: dict[str, Array] = {}
    biases: dict[str, Array] = {}
    for node in [node for node in pruned.nodes if is_fitted(pruned, node)]:
        layer, name = linear_of(pruned, node), node.output[0]
        if layer.grouped_matrix.shape[2] > WIDEST or not read_by_one(pruned, layer.weight_name):
            continue
        lanes = channels.lanes.get(name)
        kept = np.flatnonzero(~removed[lanes.ids]) if lanes is not None else None
        targets, inputs = before.value(linear_of(original, nodes[name]).output), after.value(node.input[0])
        if targets is None or inputs is None:
            continue
        if kept is not None and node.op_type in IMAGES:
            targets = [y[:, kept] for y in targets]
        elif kept is not None:
            targets = [y[..., kept] for y in targets]
        old_bias, bias_name = layer.bias(pruned), layer.bias_name()
        own_bias = bias_name is None or read_by_one(pruned, bias_name)
        found = _fit_layer(layer, old_bias, inputs, targets, rng, intercept=layer.can_have_bias and own_bias)
        if found is None:
            continue
        changed, added = _constants(pruned, layer, found, intercept=layer.can_have_bias and own_bias)
        new = {label(node): added} if added is not None else {}
        after.change(changed, new)
        values.update(changed)
        biases.update(new)
        fits.append(LayerFit(layer.name, found.before, found.after, found.ridge))
    graph = with_constants(pruned, values, biases) if fits else pruned
    return Refit(graph, tuple(fits), after.answers())


def _fit_layer(
    layer: Linear,
    bias: Array,
    inputs: Sequence[Array],
    targets: Sequence[Array],
    rng: np.random.Generator,
    *,
    intercept: bool,
) -> Fit | None:
    weights = layer.grouped_matrix
    groups, outputs, width = weights.shape
    folds = [Sums(groups, width, outputs) for _ in range(FOLDS)]
    most = -(-sample_count(width) // len(inputs))
    squares = 0.0
    for place, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        features, places = layer.samples(x, most, rng)
        results = layer.outputs_at(y, places)
        folds[place % FOLDS].add(features, results)
        squares += float(np.sum(results.astype(np.float64) ** 2))
    if sum(fold.error(weights, bias) for fold in folds) <= EXACT * squares:
        return None
    return fit(folds, weights, bias, intercept=intercept)


def _constants(graph: Graph, layer: Linear, found: Fit, *, intercept: bool) -> tuple[dict[str, Array], Array | None]:
    """New values of constants by name, and the bias of a layer that had none; None where it had one."""
    matrix = found.weights.reshape(-1, found.weights.shape[2])
    values = {layer.weight_name: layer.weights_of(matrix)}
    if not intercept:
        return values, None
    bias = found.bias.ravel().astype(values[layer.weight_name].dtype)
    name = layer.bias_name()
    if name is None:
        return values, bias
    if graph.constants[name].size == bias.size:
        values[name] = bias.reshape(graph.constants[name].shape)
    return values, None
