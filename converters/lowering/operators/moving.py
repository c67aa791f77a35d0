"""Operators that concatenate, slice, gather and rearrange elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value, aligned, channels_last, of, without_axes


@lowers("Concat")
def concat(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Concat along one axis."""
    tensors, order = aligned([required(value) for value in inputs])
    axis = int(attrs["axis"]) % len(order)
    return Value(tf.concat(tensors, axis=order[axis]), order)


@lowers("Pad")
def pad(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Pad with a constant, by reflection, or with the edge; a negative pad removes elements."""
    source = required(inputs[0])
    amounts = _amounts(inputs, source.rank)
    cut = [(max(-before, 0), max(-behind, 0)) for before, behind in amounts]
    if any(any(pair) for pair in cut):
        sizes = source.shape
        source = _cut(source, {axis: range(b, sizes[axis] - e) for axis, (b, e) in enumerate(cut) if b or e})
    grow = [(max(before, 0), max(behind, 0)) for before, behind in amounts]
    mode = attrs.get("mode", "constant")
    if mode == "edge":
        return _edged(source, grow)
    if mode not in ("constant", "reflect"):
        raise CannotLowerError(f"mode {mode}")
    fill = optional(inputs, 2)
    value = constant(fill, "value").ravel()[0] if fill is not None else 0
    pads = [(0, 0)] * source.rank
    for axis, pair in enumerate(grow):
        pads[source.order[axis]] = pair
    return source.with_tensor(tf.pad(source.tensor, pads, mode.upper(), constant_values=value))


def _amounts(inputs: Inputs, rank: int) -> list[tuple[int, int]]:
    values = [int(value) for value in constant(inputs[1], "pads")]
    chosen = optional(inputs, 3)
    axes = [int(axis) % rank for axis in constant(chosen, "axes")] if chosen is not None else list(range(rank))
    pads = [(0, 0)] * rank
    for index, axis in enumerate(axes):
        pads[axis] = (values[index], values[index + len(axes)])
    return pads


def _edged(source: Value, grow: list[tuple[int, int]]) -> Value:
    for axis, (before, behind) in enumerate(grow):
        last = source.shape[axis] - 1
        first_row, last_row = _cut(source, {axis: range(1)}).tensor, _cut(source, {axis: range(last, last + 1)}).tensor
        parts = [first_row] * before + [source.tensor] + [last_row] * behind
        if len(parts) > 1:
            source = source.with_tensor(tf.concat(parts, axis=source.order[axis]))
    return source


@lowers("Slice")
def cut(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Slice with fixed limits."""
    source = required(inputs[0])
    starts, ends = (constant(inputs[index], "limits").tolist() for index in (1, 2))
    axes, steps = optional(inputs, 3), optional(inputs, 4)
    chosen = constant(axes, "axes").tolist() if axes is not None else range(len(starts))
    strides = constant(steps, "steps").tolist() if steps is not None else [1] * len(starts)
    ranges = {}
    for axis, start, end, step in zip(chosen, starts, ends, strides, strict=True):
        size = source.shape[int(axis)]
        ranges[int(axis) % source.rank] = range(*slice(start, end, step).indices(size))
    return _cut(source, ranges)


def _cut(source: Value, ranges: dict[int, range]) -> Value:
    """The elements of `source` in `ranges`, given by logical axis."""
    tensor, limits = source.tensor, [slice(None)] * source.rank
    for axis, indices in ranges.items():
        if not indices:
            raise CannotLowerError(f"a slice that leaves axis {axis} empty")
        if indices.step < 0:
            tensor = tf.gather(tensor, np.array(indices, dtype=np.int32), axis=source.order[axis])
        elif len(indices) < source.shape[axis]:
            limits[source.order[axis]] = slice(indices.start, indices[-1] + 1, indices.step)
    if any(limit != slice(None) for limit in limits):
        tensor = tensor[tuple(limits)]
    return source.with_tensor(tensor)


@lowers("Split")
def split(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """Split into equal parts; uneven parts are slices, because delegates do not support an uneven split."""
    source = required(inputs[0])
    axis, count = int(attrs.get("axis", 0)) % source.rank, int(attrs["outputs"])
    size, chosen = source.shape[axis], optional(inputs, 1)
    if chosen is not None:
        sizes = [int(part) for part in constant(chosen, "sizes")]
    else:
        each = -(-size // count)
        sizes = [each] * (count - 1) + [size - each * (count - 1)]
    if len(set(sizes)) == 1:
        return tuple(source.with_tensor(part) for part in tf.split(source.tensor, count, axis=source.order[axis]))
    ends = np.cumsum(sizes)
    return tuple(_cut(source, {axis: range(end - part, end)}) for part, end in zip(sizes, ends, strict=True))


@lowers("Gather")
def gather(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Gather along one axis, as embeddings do; consecutive indices become a slice."""
    source, indices = required(inputs[0]), required(inputs[1])
    axis = int(attrs.get("axis", 0)) % source.rank
    if not indices.constant:
        return of(tf.gather(source.plain(), indices.plain(), axis=axis))
    index = indices.plain() % source.shape[axis]
    if index.ndim == 0:
        one = _cut(source, {axis: range(int(index), int(index) + 1)})
        return without_axes(one, tf.squeeze(one.tensor, [source.order[axis]]), [axis])
    if index.ndim == 1 and len(index) and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        return _cut(source, {axis: range(int(index[0]), int(index[-1]) + 1)})
    if index.ndim == 1:
        return source.with_tensor(tf.gather(source.tensor, index.astype(np.int32), axis=source.order[axis]))
    return of(tf.gather(source.plain(), index.astype(np.int32), axis=axis))


@lowers("GatherElements")
def gather_elements(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """GatherElements along the last axis, with equal other axes."""
    source, indices = required(inputs[0]), required(inputs[1])
    axis = int(attrs.get("axis", 0)) % source.rank
    if axis != source.rank - 1 or source.shape[:-1] != indices.shape[:-1]:
        raise CannotLowerError(f"axis {axis} of {source.rank}, or other axes that differ")
    return of(tf.gather(source.plain(), indices.plain(), batch_dims=source.rank - 1))


@lowers("GatherND")
def gather_nd(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """GatherND without batch axes."""
    if attrs.get("batch_dims"):
        raise CannotLowerError("batch_dims")
    return of(tf.gather_nd(required(inputs[0]).plain(), required(inputs[1]).plain()))


@lowers("OneHot")
def one_hot(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """OneHot with constant depth and values."""
    depth = int(constant(inputs[1], "depth").ravel()[0])
    off, on = constant(inputs[2], "values").tolist()
    kind = constant(inputs[2], "values").dtype
    indices = required(inputs[0]).plain()
    return of(tf.one_hot(indices, depth, kind.type(on), kind.type(off), axis=int(attrs.get("axis", -1)), dtype=kind))


@lowers("Trilu")
def trilu(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Trilu: one triangle of each matrix; the rest becomes 0."""
    source = required(inputs[0]).plain()
    offset = optional(inputs, 1)
    k = int(constant(offset, "diagonal")) if offset is not None else 0
    ones = np.ones([int(size) for size in source.shape[-2:]], dtype=np.float32)
    return of(source * (np.triu(ones, k) if attrs.get("upper", 1) else np.tril(ones, k)))


@lowers("DepthToSpace")
def depth_to_space(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """DepthToSpace; TensorFlow uses the order DCR, and channels in the order CRD are rearranged first."""
    source = required(inputs[0])
    block, order = int(attrs["blocksize"]), channels_last(4)
    tensor, channels = source.in_order(order), source.shape[1]
    if attrs.get("mode", "DCR") == "CRD":
        indices = np.arange(channels).reshape(-1, block * block).T.ravel()
        tensor = tf.gather(tensor, indices.astype(np.int32), axis=3)
    return Value(tf.nn.depth_to_space(tensor, block), order)


@lowers("SpaceToDepth")
def space_to_depth(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """SpaceToDepth."""
    order = channels_last(4)
    return Value(tf.nn.space_to_depth(required(inputs[0]).in_order(order), int(attrs["blocksize"])), order)
