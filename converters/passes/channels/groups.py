"""Groups of channels that can only be removed together, with the axes of tensors and weights that they occupy.

Every channel that a layer makes gets an id. An operator that treats channels one by one passes their ids on. A sum or
product of two tensors puts the ids at the same position into one group (union-find). A depthwise convolution gives its
outputs the ids of its inputs. A reshape to attention heads puts all channels of a head into one group. An operator that
mixes channels *reads* them. A removed channel counts as 0 for every reader; its values in between do not matter. A
channel is *fixed* (never removed) if it reaches an output of the model, or an operator without a rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from converters.graph.graph import Graph
from edgekit.tensors import Array

JOINED = "it is joined with values that no layer makes"  # reason why channels are fixed


class Lanes(msgspec.Struct, frozen=True):
    """The channels along `axis` of a tensor: `ids` (L,), int64, in the order of the axis."""

    axis: int
    ids: Array


class Read(msgspec.Struct, frozen=True):
    """Node number `node` mixes the channels `lanes` of `tensor`; `used` (L,) is False where all weights are 0."""

    node: int
    tensor: str
    lanes: Lanes
    used: Array


class Cut(msgspec.Struct, frozen=True):
    """A constant with channels `ids` along `axis`: input number `input_index` of node number `node`."""

    node: int
    input_index: int
    axis: int
    ids: Array


class Channels:
    """The channels of `graph`; `channels_of` (rules.py) fills in the attributes.

    Attributes:
        graph: The graph.
        sizes: The shape of every tensor for one row; None for an unknown size.
        lanes: The channels of each tensor; tensors without known channels are left out.
        reads: The nodes that mix channels.
        cuts: Constants that become smaller when channels are removed.
        groups: By node number, the channels counted by its attribute ``group``.
        counts: By node number, number of the input and index in that constant: the channels counted by that element.
        origins: By the output of a reshaping node: for each of its lanes, the index among the input's lanes (L,).
        made: By the number of a layer with weights, the channels that it makes.
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
        self.made: dict[int, Array] = {}
        self._parents: list[int] = []
        self._fixed: dict[int, str] = {}
        self._makers = {name: node for node in graph.nodes for name in node.output}

    @property
    def roots(self) -> Array:
        """The id of each channel's group (n,), int64."""
        return np.array([self._root(number) for number in range(len(self._parents))], dtype=np.int64)

    def idle(self, alive: Mapping[str, Array]) -> Array:
        """The channels that every reader reads as 0 or multiplies by 0, and that are not fixed (n,), bool.

        Args:
            alive: By tensor, False at each of its `lanes` (L,) known to be 0. All lanes of a tensor left out are alive.
        """
        roots = self.roots
        stays = np.zeros(len(roots), dtype=bool)
        stays[roots[np.array(list(self._fixed), dtype=np.int64)]] = True
        for read in self.reads:
            known = alive.get(read.tensor) if self.lanes.get(read.tensor) is read.lanes else None
            stays[roots[read.lanes.ids[read.used if known is None else read.used & known]]] = True
        return ~stays[roots]

    def frozen(self) -> dict[int, str]:
        """The reason why each fixed group is fixed, by the id of the group."""
        reasons: dict[int, str] = {}
        for number, reason in self._fixed.items():
            root = self._root(number)
            if reasons.get(root, JOINED) == JOINED:  # any other reason says more
                reasons[root] = reason
        return reasons

    def removable(self, alive: Mapping[str, Array]) -> Array:
        """The `idle` channels that can be removed (n,), bool: each tensor keeps at least one channel and its group."""
        return self.kept_alive(self.idle(alive))

    def kept_alive(self, removed: Array) -> Array:
        """`removed` (n,), bool, without the channels that have to stay so that each tensor keeps at least one."""
        roots, removed = self.roots, removed.copy()
        for lanes in self.lanes.values():
            if removed[roots[lanes.ids]].all():
                removed[roots[lanes.ids[0]]] = False
        result: Array = removed[roots]
        return result

    def new_ids(self, count: int) -> Array:
        """Ids for `count` new channels."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def fix_all(self, reason: str) -> None:
        """Fix every channel made so far; `reason` is a clause for people."""
        self._fix(range(len(self._parents)), reason)

    def fix(self, name: str, reason: str) -> None:
        """Fix the channels of tensor `name`; `reason` is a clause for people."""
        if name in self.lanes:
            self._fix(self.lanes[name].ids.tolist(), reason)

    def _fix(self, ids: Iterable[int], reason: str) -> None:
        for number in ids:
            self._fixed.setdefault(number, reason)

    def lanes_at(self, name: str, axis: int) -> Lanes | None:
        """The lanes of a tensor along `axis`: new, fixed ones if they are unknown, None if the size is unknown too."""
        lanes, sizes = self.lanes.get(name), self.sizes.get(name, ())
        if lanes is not None and lanes.axis == axis:
            return lanes
        self.fix(name, "its channels are read along another axis")
        size = sizes[axis] if axis < len(sizes) else None
        if size is None:
            return None
        ids = self.new_ids(size)
        self._fix(ids.tolist(), JOINED)
        return Lanes(axis, ids)

    def unite(self, one: Array, other: Array) -> None:
        """Put the channels at the same position of two vectors (L,) into one group."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self._parents[high] = low

    def made_by(self, name: str) -> Any:
        """The node that computes tensor `name`; None for inputs and constants."""
        return self._makers.get(name)

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


def without(channels: Channels, removed: Array) -> Graph:
    """The graph of `channels` without the `removed` ones (n,), bool. Constants that become smaller get new names."""
    graph, constants = channels.graph, channels.graph.constants
    model = _without_initializers(graph.model)
    nodes = list(model.graph.node)
    smaller: dict[tuple[Any, ...], onnx.TensorProto] = {}
    remaining: dict[tuple[int, int], dict[int, Array]] = {}
    for cut in channels.cuts:
        remaining.setdefault((cut.node, cut.input_index), {})[cut.axis] = np.flatnonzero(~removed[cut.ids])
    for (number, input_index), axes in remaining.items():
        old = nodes[number].input[input_index]
        value = constants[old]
        for axis, rows in axes.items():
            value = np.take(value, rows, axis=axis)
        if value.shape != constants[old].shape:
            key = (old, *((axis, rows.tobytes()) for axis, rows in sorted(axes.items())))
            nodes[number].input[input_index] = _named(smaller, key, value)
    for number, ids in channels.groups.items():
        entry = next(entry for entry in nodes[number].attribute if entry.name == "group")
        entry.i = int((~removed[ids]).sum())
    for number, input_index in dict.fromkeys((number, input_index) for number, input_index, _ in channels.counts):
        old = nodes[number].input[input_index]
        value = constants[old].copy()
        for (node, at, index), ids in channels.counts.items():
            if (node, at) == (number, input_index):
                value[index] -= int(removed[ids].sum())
        if (value != constants[old]).any():
            nodes[number].input[input_index] = _named(smaller, (old, value.tobytes()), value)
    read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    model.graph.initializer.extend(tensor for tensor in graph.model.graph.initializer if tensor.name in read)
    model.graph.initializer.extend(smaller.values())
    for node in [n for n in model.graph.node if n.op_type == "Constant" and n.output[0] not in read]:
        model.graph.node.remove(node)
    return Graph(model)


def _without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without weights, and without inferred shapes, which are out of date once channels are removed.

    A message never frees what is removed from it, so a whole copy would hold the weights before and after.
    """
    made = onnx.ModelProto()
    _copy_fields(model, made, leave=("graph",))
    _copy_fields(model.graph, made.graph, leave=("initializer", "value_info"))
    return made


def _copy_fields(source: Any, target: Any, *, leave: tuple[str, ...]) -> None:
    for field, value in source.ListFields():
        if field.name in leave:
            continue
        if hasattr(value, "MergeFrom"):  # a message or a list
            getattr(target, field.name).MergeFrom(value)
        else:
            setattr(target, field.name, value)


def _named(smaller: dict[tuple[Any, ...], onnx.TensorProto], key: tuple[Any, ...], value: Array) -> str:
    """Add `value` to the `smaller` constants unless `key` is known, and return its name."""
    if key not in smaller:
        smaller[key] = numpy_helper.from_array(np.ascontiguousarray(value), f"{key[0]}/kept{len(smaller)}")
    return str(smaller[key].name)
