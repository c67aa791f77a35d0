"""Rules of operators that move, join or select values: how channels pass through them (see groups.py and rules.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.graph.graph import attributes
from converters.passes.channels.groups import Channels, Lanes
from edgekit.tensors import Array

FIRST_SIZES = 2  # batch and channels

ENDLESS = 1 << 31  # an end of a Slice from here on means "to the end"
HEAD_STEPS = 48  # operators between a reshape to heads and the product of heads
RESHAPED = ("Expand", "Flatten", "Reshape", "Squeeze", "Unsqueeze")
FOLLOWED = (
    "Add",
    "Cast",
    "Div",
    "Gather",
    "Identity",
    "Mul",
    "Slice",
    "Softmax",
    "Split",
    "Transpose",
    "Where",
    *RESHAPED,
)


def concatenated(channels: Channels, number: int, node: Any) -> bool:
    """Concat along the channels keeps each part's channels; along another axis, channels at one place form a group."""
    first = next((channels.lanes[name] for name in node.input if name in channels.lanes), None)
    rank = len(channels.sizes.get(node.output[0], ()))
    if first is None or rank == 0 or any(name in channels.graph.constants for name in node.input):
        return False
    lanes = [channels.lanes_at(name, first.axis) for name in node.input]
    if any(one is None for one in lanes):
        return False
    ids = [one.ids for one in lanes if one is not None]
    if int(attributes(node)["axis"]) % rank == first.axis:
        channels.lanes[node.output[0]] = Lanes(first.axis, np.concatenate(ids))
        return True
    for other in ids[1:]:
        channels.unite(ids[0], other)
    channels.lanes[node.output[0]] = Lanes(first.axis, ids[0])
    return True


def split(channels: Channels, number: int, node: Any) -> bool:
    """Split along another axis passes channels on; along the channel axis each output gets some of them.

    A Split into equal parts without constant sizes stays equal: channels at the same place form a group.
    """
    lanes = channels.lanes.get(node.input[0])
    if lanes is None:
        return False
    rank = len(channels.sizes[node.input[0]])
    if int(attributes(node).get("axis", 0)) % rank != lanes.axis:
        channels.lanes.update(dict.fromkeys(node.output, lanes))
        return True
    given = len(node.input) > 1 and bool(node.input[1])
    if given and node.input[1] not in channels.graph.constants:
        return False
    sizes = channels.graph.constants[node.input[1]].tolist() if given else [len(lanes.ids) // len(node.output)]
    if not given:
        if len(lanes.ids) % len(node.output) or "split" in attributes(node):
            return False
        sizes *= len(node.output)
    start = 0
    for output_index, (name, size) in enumerate(zip(node.output, sizes, strict=True)):
        ids = lanes.ids[start : start + int(size)]
        channels.lanes[name] = Lanes(lanes.axis, ids)
        if given:
            channels.counts[number, 1, output_index] = ids
        else:
            channels.unite(lanes.ids[: int(size)], ids)
        start += int(size)
    return True


def sliced(channels: Channels, number: int, node: Any) -> bool:
    """Slice along other axes passes channels on; along the channels, it selects some of them with a step of 1."""
    lanes, constants = channels.lanes.get(node.input[0]), channels.graph.constants
    if lanes is None or len(node.input) < 3 or any(name and name not in constants for name in node.input[1:]):
        return False
    rank, count = len(channels.sizes[node.input[0]]), len(lanes.ids)
    starts, ends = constants[node.input[1]].tolist(), constants[node.input[2]].tolist()
    axes = constants[node.input[3]].tolist() if len(node.input) > 3 and node.input[3] else list(range(len(starts)))
    steps = constants[node.input[4]].tolist() if len(node.input) > 4 and node.input[4] else [1] * len(starts)
    axes = [int(axis) % rank for axis in axes]
    if 0 in axes and lanes.axis == 0:
        return False
    if lanes.axis not in axes:
        channels.lanes[node.output[0]] = lanes
        return True
    place = axes.index(lanes.axis)
    start, end, step = int(starts[place]), int(ends[place]), int(steps[place])
    if step != 1 or start < 0 or end < 0 or start >= count:
        return False
    channels.counts[number, 1, place] = lanes.ids[:start]
    if end < ENDLESS:
        channels.counts[number, 2, place] = lanes.ids[: min(end, count)]
    channels.lanes[node.output[0]] = Lanes(lanes.axis, lanes.ids[start : min(end, count)])
    return True


def gathered(channels: Channels, number: int, node: Any) -> bool:
    """Gather along another axis passes channels on; their axis moves by the rank of the indices less one."""
    lanes = channels.lanes.get(node.input[0])
    indices = channels.sizes.get(node.input[1])
    if lanes is None or indices is None:
        return False
    axis = int(attributes(node).get("axis", 0)) % len(channels.sizes[node.input[0]])
    if axis == lanes.axis:
        return False
    shift = len(indices) - 1 if axis < lanes.axis else 0
    channels.lanes[node.output[0]] = Lanes(lanes.axis + shift, lanes.ids)
    return True


def expanded(channels: Channels, number: int, node: Any) -> bool:
    """Expand that repeats other axes, to a constant shape."""
    lanes, wanted = channels.lanes.get(node.input[0]), channels.graph.constants.get(node.input[1])
    if lanes is None or wanted is None:
        return False
    place = lanes.axis - (len(channels.sizes[node.input[0]]) - len(wanted))
    if place < 0 or len(wanted) < len(channels.sizes[node.input[0]]):
        return False
    if int(wanted[place]) == len(lanes.ids) > 1:
        channels.counts[number, 1, place] = lanes.ids
    elif int(wanted[place]) != 1:
        return False
    channels.lanes[node.output[0]] = Lanes(place, lanes.ids)
    return True


def transposed_axes(channels: Channels, number: int, node: Any) -> bool:
    """Transpose: channels move with their axis."""
    lanes, order = channels.lanes.get(node.input[0]), list(attributes(node).get("perm", ()))
    if lanes is None or not order:
        return False
    channels.lanes[node.output[0]] = Lanes(order.index(lanes.axis), lanes.ids)
    return True


def reshaped(channels: Channels, number: int, node: Any) -> bool:
    """A reshape after which each index along one axis still belongs to one channel, or to one group of channels."""
    lanes = channels.lanes.get(node.input[0])
    before, after = channels.sizes.get(node.input[0], ()), channels.sizes.get(node.output[0], ())
    if lanes is None or len(before) < 2 or len(after) < 2:
        return False
    if None in before or None in after:
        return False
    old, new = [size or 1 for size in before], [size or 1 for size in after]
    shape = [1] * len(old)
    shape[lanes.axis] = -1
    channel_index = np.broadcast_to(np.arange(len(lanes.ids)).reshape(shape), old).reshape(new)
    axis, origin = _only_axis(channel_index)
    if axis is not None:
        ids = lanes.ids[origin]
        if len(lanes.ids) == 1 or not _target_shape_can_shrink(channels, number, node, axis, ids, lanes.axis):
            return False
        channels.origins[node.output[0]] = origin
        channels.lanes[node.output[0]] = Lanes(axis, ids)
        return True
    return _split_into_groups(channels, number, node, channel_index, lanes)


def _split_into_groups(channels: Channels, number: int, node: Any, channel_index: Array, lanes: Lanes) -> bool:
    """A reshape of the channels to several axes, as to attention heads: all channels of one index form a group."""
    axes = [axis for axis in range(1, channel_index.ndim) if _are_disjoint(channel_index, axis, len(lanes.ids))]
    heads = head_axes(channels, node.output[0], channel_index.ndim)
    best = sorted(axes, key=lambda axis: (axis not in heads, -channel_index.shape[axis]))
    for axis in best:
        parts = [np.unique(part) for part in np.moveaxis(channel_index, axis, 0)]
        ids = lanes.ids[np.array([part[0] for part in parts])]
        if not _target_shape_can_shrink(channels, number, node, axis, ids, -1):
            continue
        for part in parts:
            channels.unite(lanes.ids[np.full(len(part) - 1, part[0])], lanes.ids[part[1:]])
        channels.lanes[node.output[0]] = Lanes(axis, ids)
        return True
    return False


def _are_disjoint(channel_index: Array, axis: int, count: int) -> bool:
    """True if the slices along `axis` have different channels, equally many each."""
    parts = [np.unique(part) for part in np.moveaxis(channel_index, axis, 0)]
    return len(parts) > 1 and sum(map(len, parts)) == count and len({len(part) for part in parts}) == 1


def head_axes(channels: Channels, name: str, rank: int) -> set[int]:
    """The axes of a tensor that lead to the batch axes of a product of two tensors, as attention heads do."""
    found: set[int] = set()
    pending: list[tuple[str, tuple[int | None, ...]]] = [(name, tuple(range(rank)))]
    for _ in range(HEAD_STEPS):
        if not pending:
            break
        tensor, axes = pending.pop(0)
        for node in channels.graph.consumers(tensor):
            if node.op_type == "MatMul" and not any(one in channels.graph.constants for one in node.input):
                found |= {axis for axis in axes[:-2] if axis is not None}
            elif node.op_type in FOLLOWED:
                moved = _moved(channels, node, axes)
                pending += [
                    (output, moved) for output in node.output if len(channels.sizes.get(output, ())) == len(moved)
                ]
    return found


def _moved(channels: Channels, node: Any, axes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The axes behind one operator of `FOLLOWED`."""
    if node.op_type == "Transpose":
        order = list(attributes(node).get("perm", ()))
        return tuple(axes[index] for index in order) if len(order) == len(axes) else axes
    if node.op_type == "Gather" and channels.sizes.get(node.input[1]) == ():
        gone = int(attributes(node).get("axis", 0)) % len(axes)
        return tuple(axis for index, axis in enumerate(axes) if index != gone)
    if node.op_type == "Expand":
        return (None,) * (len(channels.sizes.get(node.output[0], ())) - len(axes)) + axes
    return _axes_behind(channels, node, axes) if node.op_type in RESHAPED else axes


def _axes_behind(channels: Channels, node: Any, axes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The axes behind a reshape: an axis stays one, alone or merged with others, where it is not split."""
    before, after = (channels.sizes.get(name, ()) for name in (node.input[0], node.output[0]))
    if None in before or None in after:
        return (None,) * len(after)
    old, new = ([size or 1 for size in sizes] for sizes in (before, after))
    found: list[int | None] = [None] * len(new)
    for index, axis in enumerate(axes):
        shape = [1] * len(old)
        shape[index] = -1
        places = np.broadcast_to(np.arange(old[index]).reshape(shape), old).reshape(new)
        place = _only_axis(places)[0] if axis is not None and old[index] > 1 else None
        if place is not None:
            found[place] = axis
    return tuple(found)


def _only_axis(values: Array) -> tuple[int | None, Array]:
    """The only axis along which `values` differ, and the values along it (L,); None if there is no such axis."""
    for axis in range(values.ndim):
        first = tuple(slice(None) if i == axis else slice(0, 1) for i in range(values.ndim))
        if (values == values[first]).all():
            return axis, values[first].ravel()
    return None, np.empty(0, dtype=np.int64)


def _target_shape_can_shrink(channels: Channels, number: int, node: Any, axis: int, ids: Array, came_from: int) -> bool:
    """True if the target shape can shrink with the channels along `axis`. Adds the element to change to `counts`."""
    if node.op_type != "Reshape":
        return True
    wanted = channels.graph.constants.get(node.input[1])
    if wanted is not None:
        if wanted[axis] > 0:
            channels.counts[number, 1, axis] = ids
        return bool(wanted[axis] > 0 or wanted[axis] == -1 or (wanted[axis] == 0 and came_from == axis))
    maker = channels.made_by(node.input[1])  # the shape is computed from the batch size; its other parts are constants
    parts = list(maker.input) if maker is not None and maker.op_type == "Concat" else []
    rest = channels.graph.constants.get(parts[axis]) if axis < len(parts) else None
    single = all(channels.sizes.get(name) == (1,) for name in parts)
    return bool(single and rest is not None and rest.item() == -1)


def keeps_first_sizes(channels: Channels, node: Any) -> bool:
    """True for a Resize to sizes whose first two are those of its own input: PyTorch exports `interpolate` so."""
    if node.op_type != "Resize" or len(node.input) < 4 or attributes(node).get("axes"):
        return False
    maker, constants = channels.made_by(node.input[3]), channels.graph.constants
    if maker is None or maker.op_type != "Concat" or any(name not in constants for name in maker.input[1:]):
        return False
    shape = channels.made_by(maker.input[0])
    given = attributes(shape) if shape is not None and shape.op_type == "Shape" else {}
    return given.get("end") == FIRST_SIZES and not given.get("start", 0) and shape.input[0] == node.input[0]


def shape_read(channels: Channels, number: int, node: Any) -> bool:
    """Shape, if its readers take only the batch size from it, or if it gives a Resize the channels that it has."""
    readers: Sequence[Any] = channels.graph.consumers(node.output[0])
    constants = channels.graph.constants
    behind = [one for reader in readers for one in channels.graph.consumers(reader.output[0])]
    if behind and all(reader.op_type == "Concat" for reader in readers):
        return all(one.input[0] == node.input[0] and keeps_first_sizes(channels, one) for one in behind)
    first = attributes(node).get("start", 0) == 0 and attributes(node).get("end") == 1
    return bool(readers) and (
        first
        or all(
            reader.op_type == "Gather"
            and reader.input[1] in constants
            and math.prod(constants[reader.input[1]].shape) == 1
            and constants[reader.input[1]].item() == 0
            for reader in readers
        )
    )
