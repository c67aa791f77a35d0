"""Operators that read or write elements at indices. ONNX counts negative indices from the end; LiteRT refuses them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.operators.moving import cut_ranges
from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, required
from converters.lowering.values import Value, of, without_axes


def counted_from_start(indices: Value, size: int, attrs: dict[str, Any], position: int = 1) -> Any:
    """`indices` in logical order with negative ones counted from the start of an axis of `size` elements."""
    plain = indices.plain()
    if indices.constant:
        return (plain % size).astype(np.int32)
    return plain if attrs["never_negative"][position] else tf.where(plain < 0, plain + size, plain)


@lowers("Gather")
def gather(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Gather along one axis, as embeddings do; consecutive indices become a slice."""
    source, indices = required(inputs[0]), required(inputs[1])
    axis = int(attrs.get("axis", 0)) % source.rank
    index = counted_from_start(indices, source.shape[axis], attrs)
    if not indices.constant:
        return of(tf.gather(attrs["variable"](source.plain()), index, axis=axis))
    if index.ndim == 0:
        one = cut_ranges(source, {axis: range(int(index), int(index) + 1)})
        return without_axes(one, tf.squeeze(one.tensor, [source.order[axis]]), [axis])
    if index.ndim == 1 and len(index) and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        return cut_ranges(source, {axis: range(int(index[0]), int(index[-1]) + 1)})
    if index.ndim == 1:
        return source.with_tensor(tf.gather(source.tensor, index, axis=source.order[axis]))
    return of(tf.gather(source.plain(), index, axis=axis))


@lowers("GatherElements")
def gather_elements(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """GatherElements along any axis."""
    source, indices = required(inputs[0]), required(inputs[1])
    axis = int(attrs.get("axis", 0)) % source.rank
    index = counted_from_start(indices, source.shape[axis], attrs)
    if all(size == 1 for a, size in enumerate(source.shape) if a != axis):
        flat = tf.reshape(source.plain(), [-1])
        return of(tf.reshape(tf.gather(flat, tf.reshape(index, [-1])), indices.shape))
    return of(tf.gather_nd(source.plain(), _places(index, indices.shape, axis)))


def _places(index: Any, shape: tuple[int, ...], axis: int) -> Any:
    """Coordinates (*shape, rank) of the elements that `index` names along `axis`; the other axes count up."""
    grids = [np.broadcast_to(grid, shape) for grid in np.meshgrid(*map(np.arange, shape), indexing="ij", sparse=True)]
    parts = [tf.constant(grid.astype(np.int32)) for grid in grids]
    parts[axis] = tf.cast(index, tf.int32)
    return tf.stack(parts, axis=-1)


@lowers("GatherND")
def gather_nd(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """GatherND, with batch axes that both inputs share."""
    source, indices = required(inputs[0]), required(inputs[1])
    places = _coordinates(source, indices, attrs, int(attrs.get("batch_dims", 0)))
    return of(tf.gather_nd(source.plain(), places))


def _coordinates(source: Value, indices: Value, attrs: dict[str, Any], batch: int) -> Any:
    """Coordinates without negative values and with the shared first `batch` axes written out."""
    count = indices.shape[-1]
    sizes = np.array(source.shape[batch : batch + count])
    if indices.constant:
        places: Any = (indices.plain() % sizes).astype(np.int32)
    else:
        plain = tf.cast(indices.plain(), tf.int32)
        places = plain if attrs["never_negative"][1] else tf.where(plain < 0, plain + sizes.astype(np.int32), plain)
    if not batch:
        return places
    shape = indices.shape[:-1]
    grids = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")[:batch]
    rows = np.stack(grids, axis=-1).astype(np.int32)
    return np.concatenate([rows, places], -1) if indices.constant else tf.concat([rows, places], axis=-1)


@lowers("ScatterND")
def scatter_nd(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """ScatterND, which replaces elements or rows, or adds to them."""
    source, indices = required(inputs[0]), required(inputs[1])
    return _scattered(source, _coordinates(source, indices, attrs, 0), required(inputs[2]).plain(), attrs)


@lowers("ScatterElements", "Scatter")
def scatter_elements(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """ScatterElements along one axis."""
    source, indices = required(inputs[0]), required(inputs[1])
    axis = int(attrs.get("axis", 0)) % source.rank
    index = counted_from_start(indices, source.shape[axis], attrs)
    return _scattered(source, _places(index, indices.shape, axis), required(inputs[2]).plain(), attrs)


def _scattered(source: Value, places: Any, updates: Any, attrs: dict[str, Any]) -> Value:
    reduction = attrs.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise CannotLowerError(f"reduction {reduction}")
    base, count = source.plain(), int(places.shape[-1])
    shape, rows = source.shape, math.prod(places.shape[:-1])
    width = math.prod(shape[count:])
    # Rows of a matrix, since LiteRT scatters along the first axis.
    steps = np.array([math.prod(shape[axis + 1 : count]) for axis in range(count)], np.int32)
    flat = tf.reshape(tf.reduce_sum(places * steps, axis=-1), (rows, 1))
    size = (math.prod(shape[:count]), width)
    added = tf.reshape(tf.scatter_nd(flat, tf.reshape(updates, (rows, width)), size), shape)
    if reduction == "add":
        return of(base + added)
    marks = tf.scatter_nd(flat, tf.ones((rows, width), tf.float32), size)
    return of(tf.where(tf.reshape(marks, shape) > 0, added, base))


@lowers("Compress")
def compress(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Compress with a constant condition."""
    source, condition = required(inputs[0]), constant(inputs[1], "condition")
    kept = np.flatnonzero(condition).astype(np.int32)
    if not len(kept):
        raise CannotLowerError("a condition that keeps nothing")
    if attrs.get("axis") is None:
        return of(tf.gather(tf.reshape(source.plain(), [-1]), kept))
    return source.with_tensor(tf.gather(source.tensor, kept, axis=source.order[int(attrs["axis"]) % source.rank]))


@lowers("OneHot")
def one_hot(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """OneHot with constant depth and values."""
    depth = int(constant(inputs[1], "depth").ravel()[0])
    off, on = constant(inputs[2], "values").tolist()
    kind = constant(inputs[2], "values").dtype
    plain = required(inputs[0]).plain()
    indices = tf.cast(plain, tf.int32) if tf.as_dtype(plain.dtype).is_floating else plain
    if not attrs["never_negative"][0]:
        indices = tf.where(indices < 0, indices + depth, indices)
    return of(tf.one_hot(indices, depth, kind.type(on), kind.type(off), axis=int(attrs.get("axis", -1)), dtype=kind))


@lowers("Hardmax")
def hardmax(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Hardmax: 1 at the first largest element along an axis, 0 elsewhere."""
    source = required(inputs[0]).plain()
    axis = int(attrs.get("axis", -1)) % len(source.shape)
    return of(tf.one_hot(tf.argmax(source, axis, output_type=tf.int32), int(source.shape[axis]), axis=axis))
