"""Operators that only change axes and shape: transposes and reshapes, without run-time cost where possible."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import Inputs, axes_of, constant, lowers, optional, required
from converters.lowering.values import Value, channels_last, of, without_axes


@lowers("Transpose")
def transpose(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Transpose: changes only the value's axis order, and adds no operator."""
    source = required(inputs[0])
    perm = attrs.get("perm") or list(range(source.rank))[::-1]
    return Value(source.tensor, tuple(source.order[axis] for axis in perm))


@lowers("Reshape")
def reshape(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Reshape; free if only axes of size 1 move. A channel-last value stays so if only its other axes change."""
    source = required(inputs[0])
    wanted = [int(size) for size in constant(inputs[1], "shape")]
    shape = _resolved(wanted, source.shape, keep_zero=bool(attrs.get("allowzero", 0)))
    perm = _channel_move(source.shape, tuple(shape))
    if perm is not None:
        return Value(source.tensor, tuple(source.order[axis] for axis in perm))
    if tuple(shape) == source.shape:
        return source
    last = channels_last(source.rank) if source.rank > 2 else ()
    if source.order == last and len(shape) > 2 and tuple(shape[:2]) == source.shape[:2]:
        return Value(tf.reshape(source.tensor, [shape[0], *shape[2:], shape[1]]), channels_last(len(shape)))
    regrouped = _regrouped(source, tuple(shape))
    return of(tf.reshape(source.plain(), shape)) if regrouped is None else regrouped


def _regrouped(source: Value, shape: tuple[int, ...]) -> Value | None:
    """The value of a reshape that only splits the channels of a channel-last value, or joins such parts again.

    The other axes stay in front of the channels, as in channel shuffles and group normalizations. None for any other.
    """
    split, rank = len(shape) > source.rank, min(source.rank, len(shape))
    spatial = rank - 2
    if rank < 3 or len(shape) == source.rank or shape[0] != source.shape[0]:
        return None
    if shape[-spatial:] != source.shape[-spatial:]:
        return None
    parts = max(source.rank, len(shape)) - 1 - spatial
    order = (0, *range(spatial + 1, spatial + 1 + parts), *range(1, spatial + 1))
    if split:
        if source.order != channels_last(source.rank):
            return None
        return Value(tf.reshape(source.tensor, [shape[0], *shape[-spatial:], *shape[1:-spatial]]), order)
    if source.order[0] != 0 or source.order[-spatial:] != order[-spatial:]:
        return None
    return Value(tf.reshape(source.in_order(order), [shape[0], *shape[2:], shape[1]]), channels_last(rank))


@lowers("Flatten")
def flatten(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Flatten to two axes."""
    source = required(inputs[0])
    axis = int(attrs.get("axis", 1))
    axis = axis + source.rank if axis < 0 else axis
    shape = (math.prod(source.shape[:axis]), math.prod(source.shape[axis:]))
    return of(tf.reshape(source.plain(), shape))


@lowers("Squeeze")
def squeeze(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Squeeze of named axes, or of every axis of size 1."""
    source = required(inputs[0])
    axes = axes_of(inputs, attrs, source.rank)
    chosen = axes if axes is not None else [a for a, size in enumerate(source.shape) if size == 1]
    tensor = tf.squeeze(source.tensor, [source.order[axis] for axis in chosen]) if chosen else source.tensor
    return without_axes(source, tensor, chosen)


@lowers("Unsqueeze")
def unsqueeze(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Unsqueeze at given axes of the result; the tensor gets them at its end, and the axis order places them."""
    source = required(inputs[0])
    axes = attrs.get("axes") if "axes" in attrs else [int(a) for a in constant(optional(inputs, 1), "axes")]
    rank = source.rank + len(axes or ())
    placed = {int(axis) % rank for axis in axes or ()}
    before, behind = iter(source.order), iter(range(source.rank, rank))
    order = tuple(next(behind) if axis in placed else next(before) for axis in range(rank))
    sizes = [int(size) for size in source.tensor.shape]
    if source.order == tuple(range(source.rank)):  # a tensor in logical order stays in it
        shape, left = [], iter(sizes)
        for axis in range(rank):
            shape.append(1 if axis in placed else next(left))
        return of(tf.reshape(source.tensor, shape))
    return Value(tf.reshape(source.tensor, [*sizes, *[1] * len(placed)]), order)


@lowers("Shape")
def shape_of(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Shape, a constant during lowering."""
    shape = required(inputs[0]).shape
    return of(np.array(shape[attrs.get("start", 0) : attrs.get("end", len(shape))], dtype=np.int64))


@lowers("Size")
def size_of(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Size, a constant during lowering."""
    return of(np.array(math.prod(required(inputs[0]).shape), dtype=np.int64))


@lowers("Expand")
def expand(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Expand by broadcasting."""
    source = required(inputs[0])
    shape = np.broadcast_shapes(source.shape, tuple(int(size) for size in constant(inputs[1], "shape")))
    return source if shape == source.shape else of(tf.broadcast_to(source.plain(), shape))


@lowers("Tile")
def tile(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Tile along every axis."""
    source = required(inputs[0])
    repeats = [int(count) for count in constant(inputs[1], "repeats")]
    physical = [1] * source.rank
    for axis, physical_axis in enumerate(source.order):
        physical[physical_axis] = repeats[axis]
    return source.with_tensor(tf.tile(source.tensor, physical))


def _resolved(wanted: list[int], shape: tuple[int, ...], *, keep_zero: bool) -> list[int]:
    sizes = [shape[axis] if size == 0 and not keep_zero else size for axis, size in enumerate(wanted)]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // rest if rest else 0
    return sizes


def _channel_move(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...] | None:
    """The transposition between channel-last and channel-first that a reshape of an image is equal to, or None.

    Exporters write such a reshape for images of one channel or one pixel.
    """
    if len(before) != 4 or len(after) != 4 or before == after:
        return None
    for perm in ((0, 3, 1, 2), (0, 2, 3, 1)):
        moved = [axis for axis in perm if before[axis] != 1]
        if tuple(before[axis] for axis in perm) == after and moved == sorted(moved):
            return perm
    return None
