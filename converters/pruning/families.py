"""Families: channels that the same layers make. Each family is pruned by itself, in units that can only go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from converters.graph.graph import label
from converters.passes.channels.groups import Channels
from converters.pruning.kept import ranges_text
from edgekit.errors import ConversionError
from edgekit.tensors import Array

LEAST_UNITS = 2  # a family with fewer units cannot lose any
RECURRENT = ("GRU", "LSTM", "RNN")
WEIGHTED = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
UNITS_STAY = "it is recurrent, and its units depend on each other from step to step"  # reasons, as clauses
NO_RULE = "there is no rule for the channels of such a layer"


class Family(msgspec.Struct, frozen=True):
    """Units of channels that the same layers make.

    Attributes:
        layers: Names of these layers, in order of execution.
        units: For each unit that can be removed, the id of its group (U,).
        width: The channels of each layer, where all have as many and a unit is one channel of each; else 0.
    """

    layers: tuple[str, ...]
    units: Array
    width: int = 0


def families_of(channels: Channels) -> list[Family]:
    """The families with units that can be removed, in order of execution."""
    roots, frozen, nodes = channels.roots, channels.frozen(), channels.graph.nodes
    parents: dict[int, int] = {number: number for number in channels.made}

    def first(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    owner: dict[int, int] = {}
    for number, ids in channels.made.items():
        for root in np.unique(roots[ids]).tolist():
            one, other = sorted((first(owner.setdefault(root, number)), first(number)))
            parents[other] = one
    families = []
    for leader in [number for number in channels.made if first(number) == number]:
        members = [number for number in channels.made if first(number) == leader]
        units = np.unique(np.concatenate([roots[channels.made[n]] for n in members])).tolist()
        free = np.array([root for root in units if root not in frozen], dtype=np.int64)
        if len(free) >= LEAST_UNITS:
            made = [roots[channels.made[number]] for number in members]
            width = len(units) if all(len(one) == len(np.unique(one)) == len(units) for one in made) else 0
            families.append(Family(tuple(label(nodes[number]) for number in members), free, width))
    return families


def frozen_layers(channels: Channels) -> dict[str, str]:
    """The reason why a layer keeps all its channels, by the layer's name; without layers that can lose some."""
    roots, frozen, constants = channels.roots, channels.frozen(), channels.graph.constants
    reasons = {}
    for number, node in enumerate(channels.graph.nodes):
        if number in channels.made:
            mine = [frozen.get(root) for root in roots[channels.made[number]].tolist()]
            if all(reason is not None for reason in mine):
                reasons[label(node)] = str(mine[0])
        elif node.op_type in RECURRENT:
            reasons[label(node)] = UNITS_STAY
        elif node.op_type in WEIGHTED and number not in channels.groups and any(x in constants for x in node.input[:2]):
            reasons[label(node)] = NO_RULE
    return reasons


def removed_channels(
    channels: Channels, families: Sequence[Family], orders: Sequence[Array], counts: Sequence[int]
) -> Array:
    """The channels (n,), bool, that go if each family loses the first units of its order. Each tensor keeps one."""
    gone = [family.units[order[:count]] for family, order, count in zip(families, orders, counts, strict=True)]
    picked = np.concatenate(gone) if gone else np.empty(0, dtype=np.int64)
    return channels.kept_alive(np.isin(channels.roots, picked))


def kept_by_layer(channels: Channels, removed: Array) -> tuple[tuple[str, str], ...]:
    """The kept channels of each layer that loses some: its name, and the channels as in ``0-3,7``."""
    nodes = channels.graph.nodes
    return tuple(
        (label(nodes[number]), ranges_text(np.flatnonzero(~removed[ids]).tolist()))
        for number, ids in channels.made.items()
        if removed[ids].any()
    )


def removed_by_names(channels: Channels, kept: Mapping[str, Sequence[int]]) -> Array:
    """The channels (n,), bool, that go if the layers keep the channels `kept`, by the layer's name.

    Raises:
        ConversionError: There is no such layer or channel, or a removed channel has to stay.
    """
    nodes, roots, frozen = channels.graph.nodes, channels.roots, channels.frozen()
    made = {label(nodes[number]): ids for number, ids in channels.made.items()}
    gone: set[int] = set()
    for name, numbers in kept.items():
        if name not in made:
            raise ConversionError(
                f"the recipe keeps channels of layer {name}, which the model does not have",
                advice=f"Layers that make channels: {', '.join(made)}.",
            )
        count = len(made[name])
        if not numbers or min(numbers) < 0 or max(numbers) >= count:
            raise ConversionError(f"layer {name} has the channels 0 to {count - 1}; the recipe keeps others or none")
        left = np.delete(np.arange(count), list(numbers))
        gone |= set(roots[made[name][left]].tolist())
        for root in roots[made[name][left]].tolist():
            if root in frozen:
                raise ConversionError(f"the channels of layer {name} have to stay: {frozen[root]}")
    removed = channels.kept_alive(np.isin(roots, sorted(gone)))
    for name, numbers in kept.items():
        if removed[made[name][list(numbers)]].any() or (~removed[made[name]]).sum() != len(set(numbers)):
            raise ConversionError(
                f"the recipe does not keep whole groups of channels in layer {name}: some of its channels can only be "
                "removed together with channels that the recipe keeps",
                advice="Take the channels from a recipe that edgekit made, or leave the layer out.",
            )
    return removed
