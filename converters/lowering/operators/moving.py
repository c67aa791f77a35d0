"""Operators that concatenate, slice, pad and rearrange elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value, aligned, channels_last, of
from converters.lowering.windows import with_edges


@lowers("Concat")
def concat(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Concat along one axis."""
    tensors, order = aligned([required(value) for value in inputs])
    axis = int(attrs["axis"]) % len(order)
    return Value(tf.concat(tensors, axis=order[axis]), order)


@lowers("Pad")
def pad(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Pad with a constant, by reflection, with the edge, or around; a negative pad removes elements."""
    source = required(inputs[0])
    amounts = _amounts(inputs, source.rank)
    cut = [(max(-before, 0), max(-behind, 0)) for before, behind in amounts]
    if any(any(pair) for pair in cut):
        sizes = source.shape
        source = cut_ranges(source, {axis: range(b, sizes[axis] - e) for axis, (b, e) in enumerate(cut) if b or e})
    grow = [(max(before, 0), max(behind, 0)) for before, behind in amounts]
    mode = attrs.get("mode", "constant")
    if mode == "edge":
        return source.with_tensor(with_edges(source.tensor, {source.order[a]: pair for a, pair in enumerate(grow)}))
    if mode == "wrap":
        return _wrapped(source, grow)
    if mode not in ("constant", "reflect"):
        raise CannotLowerError(f"mode {mode}")
    fill = optional(inputs, 2)
    value = constant(fill, "value").ravel()[0] if fill is not None else 0
    pads = [(0, 0)] * source.rank
    for axis, pair in enumerate(grow):
        pads[source.order[axis]] = pair
    return source.with_tensor(tf.pad(source.tensor, pads, mode.upper(), constant_values=value))


def _wrapped(source: Value, grow: list[tuple[int, int]]) -> Value:
    """`source` continued from its other end along each axis, as circular padding does."""
    for axis, (before, behind) in enumerate(grow):
        size = source.shape[axis]
        copies = 1 + -(-before // size) + -(-behind // size)
        if copies == 1:
            continue
        first = -before % size
        joined = source.with_tensor(tf.concat([source.tensor] * copies, axis=source.order[axis]))
        source = cut_ranges(joined, {axis: range(first, first + before + size + behind)})
    return source


def _amounts(inputs: Inputs, rank: int) -> list[tuple[int, int]]:
    values = [int(value) for value in constant(inputs[1], "pads")]
    chosen = optional(inputs, 3)
    axes = [int(axis) % rank for axis in constant(chosen, "axes")] if chosen is not None else list(range(rank))
    pads = [(0, 0)] * rank
    for index, axis in enumerate(axes):
        pads[axis] = (values[index], values[index + len(axes)])
    return pads


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
    return cut_ranges(source, ranges)


def cut_ranges(source: Value, ranges: dict[int, range]) -> Value:
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
    return tuple(cut_ranges(source, {axis: range(end - part, end)}) for part, end in zip(sizes, ends, strict=True))


@lowers("Trilu")
def trilu(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Trilu: one triangle of each matrix; the rest becomes 0."""
    source = required(inputs[0]).plain()
    offset = optional(inputs, 1)
    k = int(constant(offset, "diagonal")) if offset is not None else 0
    ones = np.ones([int(size) for size in source.shape[-2:]], dtype=np.float32)
    kept = np.triu(ones, k) if attrs.get("upper", 1) else np.tril(ones, k)
    if source.dtype == tf.bool:
        return of(tf.logical_and(source, kept > 0))
    return of(source * kept.astype(source.dtype.as_numpy_dtype))


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


@lowers("CenterCropPad")
def center_crop_pad(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """CenterCropPad: cut or pad both ends of axes to a constant size."""
    source = required(inputs[0])
    axes = [int(axis) % source.rank for axis in attrs.get("axes") or range(source.rank)]
    pads = [(0, 0)] * source.rank
    for axis, wanted in zip(axes, constant(inputs[1], "shape").tolist(), strict=True):
        size = source.shape[axis]
        if wanted < size:
            start = (size - wanted) // 2
            source = cut_ranges(source, {axis: range(start, start + wanted)})
        else:
            pads[source.order[axis]] = ((wanted - size) // 2, wanted - size - (wanted - size) // 2)
    return source.with_tensor(tf.pad(source.tensor, pads)) if np.any(pads) else source
