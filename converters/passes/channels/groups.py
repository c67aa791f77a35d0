"""Channels that can only go together: which axes of which tensors and weights belong to one.

Every channel that a layer makes gets a number. What hands channels on keeps their numbers, a sum or product of two
tensors makes the numbers at one place the same (union-find), and a depthwise convolution gives its outputs the numbers
of its inputs. Whoever mixes channels *reads* them. A channel can be taken away where everybody who reads it reads 0, or
multiplies it by 0: what it is in between does not matter. A channel that reaches an output of the model, or an operator
of which no rule is known, is *held*: it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from converters.graph.graph import Graph
from edgekit.tensors import Array


class Lanes(msgspec.Struct, frozen=True):
    """Along `axis` of a tensor lie the channels `ids` (L,), int64, in this order."""

    axis: int
    ids: Array


class Read(msgspec.Struct, frozen=True):
    """A node mixes the channels `lanes` of `tensor`; `used` (L,) is False where it multiplies all of one by 0."""

    tensor: str
    lanes: Lanes
    used: Array


class Cut(msgspec.Struct, frozen=True):
    """Along `axis` of the constant that node number `node` has as input `place` lie the channels `ids`."""

    node: int
    place: int
    axis: int
    ids: Array


class Channels:
    """The channels of `graph`; `channels_of` (rules.py) fills it.

    Attributes:
        graph: As given.
        sizes: The shape of every tensor for one row; None for a size that cannot be told.
        lanes: Where the channels of each tensor lie; tensors without any known are left out.
        reads: Who mixes them.
        cuts: Constants that become smaller with them.
        groups: By node number, the channels that its attribute ``group`` counts.
        counts: By node number, place among its inputs and place in that constant, the channels that are counted there.
        origins: By the output of a reshaping node, the place in the input's lanes (L,) that each of its own has.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        one = graph.with_batch(1)
        self.sizes: Mapping[str, tuple[int | None, ...]] = one.shapes
        self.lanes: dict[str, Lanes] = {}
        self.reads: list[Read] = []
        self.cuts: list[Cut] = []
        self.groups: dict[int, Array] = {}
        self.counts: dict[tuple[int, int, int], Array] = {}
        self.origins: dict[str, Array] = {}
        self._parents: list[int] = []
        self._held: set[int] = set()
        self._makers = {name: node for node in graph.nodes for name in node.output}

    @property
    def roots(self) -> Array:
        """The number that stands for each channel's whole group (n,), int64."""
        return np.array([self._root(number) for number in range(len(self._parents))], dtype=np.int64)

    def idle(self, alive: Mapping[str, Array]) -> Array:
        """Which channels are 0 or multiplied by 0 wherever they are read, and are not held (n,), bool.

        Args:
            alive: By tensor, True at each of its `lanes` (L,) that is not known to be 0; of a tensor left out all are.
        """
        roots = self.roots
        stays = np.zeros(len(roots), dtype=bool)
        stays[roots[np.array(sorted(self._held), dtype=np.int64)]] = True
        for read in self.reads:
            known = alive.get(read.tensor) if self.lanes.get(read.tensor) is read.lanes else None
            stays[roots[read.lanes.ids[read.used if known is None else read.used & known]]] = True
        return ~stays[roots]

    def removable(self, alive: Mapping[str, Array]) -> Array:
        """Those of `idle` that can go (n,), bool: each tensor keeps one channel at least, and what goes with that."""
        roots, gone = self.roots, self.idle(alive)
        for lanes in self.lanes.values():
            if gone[roots[lanes.ids]].all():
                gone[roots[lanes.ids[0]]] = False
        found: Array = gone[roots]
        return found

    def fresh(self, count: int) -> Array:
        """Numbers for `count` new channels."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def hold_all(self) -> None:
        """Every channel so far stays."""
        self._held.update(range(len(self._parents)))

    def hold(self, name: str) -> None:
        """The channels of tensor `name` stay."""
        if name in self.lanes:
            self._held.update(self.lanes[name].ids.tolist())

    def at(self, name: str, axis: int) -> Lanes | None:
        """The lanes of a tensor along `axis`; held ones where nothing is known of them, None where not even a size."""
        found, sizes = self.lanes.get(name), self.sizes.get(name, ())
        if found is not None and found.axis == axis:
            return found
        self.hold(name)
        size = sizes[axis] if axis < len(sizes) else None
        if size is None:
            return None
        ids = self.fresh(size)
        self._held.update(ids.tolist())
        return Lanes(axis, ids)

    def unite(self, one: Array, other: Array) -> None:
        """The channels at each place of two vectors (L,) go together."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self._parents[high] = low

    def made_by(self, name: str) -> Any:
        """The node that makes tensor `name`; None for inputs and constants."""
        return self._makers.get(name)

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


def without(channels: Channels, gone: Array) -> Graph:
    """The graph of `channels` without those that are `gone` (n,), bool; constants that become smaller get new names."""
    graph, constants = channels.graph, channels.graph.constants
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = list(model.graph.node)
    names: dict[tuple[Any, ...], str] = {}
    kept: dict[tuple[int, int], dict[int, Array]] = {}
    for cut in channels.cuts:
        kept.setdefault((cut.node, cut.place), {})[cut.axis] = np.flatnonzero(~gone[cut.ids])
    for (number, place), axes in kept.items():
        old = nodes[number].input[place]
        value = constants[old]
        for axis, rows in axes.items():
            value = np.take(value, rows, axis=axis)
        if value.shape != constants[old].shape:
            key = (old, *((axis, rows.tobytes()) for axis, rows in sorted(axes.items())))
            nodes[number].input[place] = _named(model, names, key, value)
    for number, ids in channels.groups.items():
        entry = next(entry for entry in nodes[number].attribute if entry.name == "group")
        entry.i = int((~gone[ids]).sum())
    for number, place in dict.fromkeys((number, place) for number, place, _ in channels.counts):
        old = nodes[number].input[place]
        value = constants[old].copy()
        for (node, at, index), ids in channels.counts.items():
            if (node, at) == (number, place):
                value[index] -= int(gone[ids].sum())
        if (value != constants[old]).any():
            nodes[number].input[place] = _named(model, names, (old, value.tobytes()), value)
    _drop_unread(model)
    return Graph(model)


def _named(model: onnx.ModelProto, names: dict[tuple[Any, ...], str], key: tuple[Any, ...], value: Array) -> str:
    """The name of `value` among the constants of `model`; readers of the same share it."""
    if key not in names:
        names[key] = f"{key[0]}/kept{len(names)}"
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), names[key]))
    return names[key]


def _drop_unread(model: onnx.ModelProto) -> None:
    """Without constants that nobody reads, and without shapes that no longer hold."""
    read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in [n for n in model.graph.node if n.op_type == "Constant" and n.output[0] not in read]:
        model.graph.node.remove(node)
    del model.graph.value_info[:]
