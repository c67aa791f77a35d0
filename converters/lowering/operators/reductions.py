"""Operators that reduce axes to a value or to the index of a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from converters.lowering.registry import Inputs, axes_of, constant, lowers, required
from converters.lowering.values import Value, without_axes


def _reduce(operator: str, function: Callable[..., Any]) -> None:
    def lowering(inputs: Inputs, attrs: dict[str, Any]) -> Value:
        source = required(inputs[0])
        axes = axes_of(inputs, attrs, source.rank)
        if axes is None and attrs.get("noop_with_empty_axes"):
            return source
        chosen = axes if axes is not None else list(range(source.rank))
        keep = bool(attrs.get("keepdims", 1))
        tensor = function(source.tensor, axis=[source.order[axis] for axis in chosen], keepdims=keep)
        return source.with_tensor(tensor) if keep else without_axes(source, tensor, chosen)

    lowers(operator)(lowering)


def _square_sum(x: Any, **where: Any) -> Any:
    return tf.reduce_sum(tf.square(x), **where)


def _log_sum_exp(x: Any, *, axis: list[int], keepdims: bool) -> Any:
    """Log-sum-exp; the largest value is subtracted first against overflow."""
    largest = tf.reduce_max(x, axis=axis, keepdims=True)
    total = tf.math.log(tf.reduce_sum(tf.exp(x - largest), axis=axis, keepdims=True)) + largest
    return total if keepdims else tf.squeeze(total, axis)


_reduce("ReduceMean", tf.reduce_mean)
_reduce("ReduceSum", tf.reduce_sum)
_reduce("ReduceMax", lambda x, **where: (tf.reduce_any if x.dtype.is_bool else tf.reduce_max)(x, **where))
_reduce("ReduceMin", lambda x, **where: (tf.reduce_all if x.dtype.is_bool else tf.reduce_min)(x, **where))
_reduce("ReduceProd", tf.reduce_prod)
_reduce("ReduceL1", lambda x, **where: tf.reduce_sum(tf.abs(x), **where))
_reduce("ReduceL2", lambda x, **where: tf.sqrt(_square_sum(x, **where)))
_reduce("ReduceSumSquare", _square_sum)
_reduce("ReduceLogSum", lambda x, **where: tf.math.log(tf.reduce_sum(x, **where)))
_reduce("ReduceLogSumExp", _log_sum_exp)


def _extremes(tensor: Any, axis: int, function: Callable[..., Any]) -> Any:
    """For whole numbers that LiteRT finds no index in (int64, int16): 1 where the extreme is, and 0 elsewhere."""
    return tf.cast(tf.equal(tensor, function(tensor, axis=axis, keepdims=True)), tf.int32)


def _index_of(operator: str, function: Callable[..., Any], extreme: Callable[..., Any]) -> None:
    """Register the index of the first (or last) extreme; equal values are told apart by their places, as in ONNX."""

    def lowering(inputs: Inputs, attrs: dict[str, Any]) -> Value:
        source = required(inputs[0])
        axis = int(attrs.get("axis", 0)) % source.rank
        tensor, last = source.tensor, bool(attrs.get("select_last_index"))
        if last:
            tensor = tf.reverse(tensor, [source.order[axis]])
        if tensor.dtype in (tf.int64, tf.int16):
            index = tf.argmax(_extremes(tensor, source.order[axis], extreme), axis=source.order[axis])
        else:
            index = function(tensor, axis=source.order[axis], output_type=tf.int64)
        index = source.shape[axis] - 1 - index if last else index
        if attrs.get("keepdims", 1):
            return source.with_tensor(tf.expand_dims(index, source.order[axis]))
        return without_axes(source, index, [axis])

    lowers(operator)(lowering)


_index_of("ArgMax", tf.argmax, tf.reduce_max)
_index_of("ArgMin", tf.argmin, tf.reduce_min)


@lowers("TopK")
def top_k(inputs: Inputs, attrs: dict[str, Any]) -> tuple[Value, ...]:
    """TopK: the largest or smallest values along an axis, sorted."""
    source = required(inputs[0])
    axis = int(attrs.get("axis", -1)) % source.rank
    others = [a for a in range(source.rank) if a != axis]
    order = tuple([*others, axis].index(a) for a in range(source.rank))
    tensor, sign = source.in_order(order), 1.0 if attrs.get("largest", 1) else -1.0
    count = int(constant(inputs[1], "number").ravel()[0])
    values, indices = tf.math.top_k(tensor if sign > 0 else -tensor, count, sorted=True)
    return Value(values if sign > 0 else -values, order), Value(tf.cast(indices, tf.int64), order)


@lowers("CumSum")
def cumulative_sum(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """CumSum along one axis."""
    source = required(inputs[0])
    axis = source.order[int(constant(inputs[1], "axis").ravel()[0]) % source.rank]
    exclusive, reverse = bool(attrs.get("exclusive")), bool(attrs.get("reverse"))
    return source.with_tensor(tf.cumsum(source.tensor, axis, exclusive=exclusive, reverse=reverse))
