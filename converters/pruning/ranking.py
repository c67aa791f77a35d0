"""The order in which each family loses its units, from the inputs that its readers see on the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from converters.graph.graph import Graph
from converters.passes.channels.groups import Channels, Read
from converters.passes.stepping import Stepper
from converters.passes.weights import is_dense, read_by_one, with_constants
from converters.pruning.elimination import Elimination, Reader, eliminate
from converters.pruning.families import Family
from converters.pruning.linear import Linear, channel_weights, reader_inputs, sample_count
from edgekit.tensors import Array

WIDEST_PATCH = 1200  # a convolution with more inputs per output is judged by its channels, without their places
RIDGE = 1e-3  # share of the mean variance


class ReaderMoments(msgspec.Struct, frozen=True):
    """Mean (G, K) and covariance (G, K, K) of the inputs of a layer; by channel where `by_channel`."""

    read: Read
    mean: Array
    covariance: Array
    by_channel: bool


class Ranking(msgspec.Struct, frozen=True):
    """The eliminations of all families, and the moments of all readers."""

    eliminations: tuple[Elimination, ...]
    readers: tuple[ReaderMoments, ...]


def rank(
    channels: Channels, families: Sequence[Family], chunks: Sequence[Mapping[str, Array]], seed: int = 0
) -> Ranking:
    """Rank the units of each family by the loss of the layers that read them, on the rows of `chunks`."""
    stepper, rng = Stepper(channels.graph, chunks), np.random.default_rng(seed)
    roots = channels.roots
    pruned = np.concatenate([family.units for family in families]) if families else np.empty(0)
    readers = []
    for read in sorted(channels.reads, key=lambda read: read.node):
        if not np.isin(roots[read.lanes.ids], pruned).any():
            continue
        values = stepper.value(read.tensor)
        if values is not None:
            readers.append(_moments(channels.graph, read, values, rng))
    eliminations = []
    for family in families:
        unit_of = {int(root): unit for unit, root in enumerate(family.units)}
        parts = [one for moments in readers for one in _readers(channels, moments, roots, unit_of)]
        eliminations.append(eliminate(parts, len(family.units)))
    return Ranking(tuple(eliminations), tuple(readers))


def compensated(channels: Channels, removed: Array, pruned: Graph, readers: Sequence[ReaderMoments]) -> Graph:
    """`pruned` with the layers that directly read removed channels fitted to their old outputs (least squares)."""
    nodes = {node.output[0]: node for node in pruned.nodes}
    values: dict[str, Array] = {}
    biases: dict[str, Array] = {}
    for moments in readers:
        gone = removed[moments.read.lanes.ids]
        old_node = channels.graph.nodes[moments.read.node]
        if moments.by_channel or not gone.any() or not is_dense(channels.graph, old_node):
            continue
        old, new = Linear(channels.graph, old_node), Linear(pruned, nodes[old_node.output[0]])
        lanes = channels.lanes.get(old_node.output[0])
        kept_outputs = ~removed[lanes.ids] if lanes is not None else np.ones(len(old.matrix), dtype=bool)
        if not read_by_one(pruned, new.weight_name):
            continue
        matrix, bias = _fitted(old, channels.graph, moments, gone, kept_outputs)
        values[new.weight_name] = new.weights_of(matrix)
        name = new.bias_name()
        if new.can_have_bias and name is None:
            biases[new.name] = bias.astype(np.float32)
        elif new.can_have_bias and name is not None and read_by_one(pruned, name):
            old_bias = pruned.constants[name]
            if old_bias.size == bias.size:
                values[name] = bias.reshape(old_bias.shape).astype(old_bias.dtype)
    return with_constants(pruned, values, biases)


def _fitted(old: Linear, graph: Graph, moments: ReaderMoments, gone: Array, outputs: Array) -> tuple[Array, Array]:
    """New weights (O, K) and bias (O,) of a layer that reads channels of which some are `gone` (L,), bool."""
    weights, bias = old.grouped_matrix, old.bias(graph)
    taps = weights.shape[2] * old.group // len(gone)
    lost = np.repeat(gone, taps).reshape(old.group, -1)
    made_weights, made_bias = [], []
    for group in range(old.group):
        covariance = moments.covariance[group].astype(np.float64)
        kept = ~lost[group]
        inside = covariance[np.ix_(kept, kept)]
        ridge = np.eye(len(inside)) * max(RIDGE * float(np.trace(inside)) / max(len(inside), 1), 1e-12)
        cross = covariance[np.ix_(kept, lost[group])] @ weights[group][:, lost[group]].T
        new = weights[group][:, kept] + np.linalg.solve(inside + ridge, cross).T
        mean = moments.mean[group]
        made_bias.append(bias[group] + weights[group] @ mean - new @ mean[kept])
        made_weights.append(new)
    return np.concatenate(made_weights)[outputs], np.concatenate(made_bias)[outputs]


def _moments(graph: Graph, read: Read, values: Sequence[Array], rng: np.random.Generator) -> ReaderMoments:
    node = graph.nodes[read.node]
    layer = Linear(graph, node) if is_dense(graph, node) else None
    by_channel = layer is None or (layer.group == 1 and _is_wide(layer, len(read.lanes.ids)))
    width = len(read.lanes.ids) if layer is None or by_channel else layer.grouped_matrix.shape[2]
    most = -(-sample_count(width) // len(values))
    total, count, products = np.zeros(()), 0, np.zeros(())
    for x in values:
        if layer is None or by_channel:
            features = reader_inputs(node, x, most, rng)[:, None, :]
        else:
            features = layer.samples(x, most, rng)[0]
        groups = np.ascontiguousarray(features.transpose(1, 0, 2), dtype=np.float64)  # (G, n, K)
        part = np.ascontiguousarray(groups.transpose(0, 2, 1)) @ groups
        total = total + groups.sum(axis=1)
        products = products + part
        count += len(features)
    mean = total / count
    covariance = products / count - mean[:, :, None] * mean[:, None, :]
    return ReaderMoments(read, mean, covariance.astype(np.float32), by_channel)


def _is_wide(layer: Linear, channels: int) -> bool:
    width = int(layer.grouped_matrix.shape[2])
    return width > max(WIDEST_PATCH, channels)


def _readers(channels: Channels, moments: ReaderMoments, roots: Array, unit_of: Mapping[int, int]) -> list[Reader]:
    """The reader, once per group, with the units of one family; empty where it reads none of them."""
    ids = roots[moments.read.lanes.ids]
    owner = np.array([unit_of.get(int(root), -1) for root in ids])
    if (owner < 0).all():
        return []
    node: Any = channels.graph.nodes[moments.read.node]
    if moments.by_channel:
        return [Reader(moments.covariance[0], channel_weights(channels.graph, node), owner)]
    layer = Linear(channels.graph, node)
    weights = layer.grouped_matrix
    taps = weights.shape[2] * layer.group // len(ids)
    owners = np.repeat(owner, taps).reshape(layer.group, -1)
    return [Reader(moments.covariance[group], weights[group], owners[group]) for group in range(layer.group)]
