"""Operators that only move, join or reduce elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, given, known, lowers, optional
from converters.lowering.values import Value, aligned, of, without_axes


@lowers("Transpose")
def transpose(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Transpose: nothing happens yet, the value is only read in another order."""
    source = given(inputs[0])
    perm = attrs.get("perm") or list(range(source.rank))[::-1]
    if source.constant:
        return of(np.transpose(source.plain(), perm))
    return Value(source.tensor, tuple(source.order[axis] for axis in perm))


@lowers("Reshape")
def reshape(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Reshape; one that only moves axes of size 1 is a transpose in disguise, and stays free."""
    source = given(inputs[0])
    wanted = [int(size) for size in known(inputs[1], "shape")]
    shape = _resolved(wanted, source.shape, keep_zero=bool(attrs.get("allowzero", 0)))
    perm = _channel_move(source.shape, tuple(shape))
    if perm is not None and not source.constant:
        return Value(source.tensor, tuple(source.order[axis] for axis in perm))
    if source.constant:
        return of(source.plain().reshape(shape))
    return of(tf.reshape(source.plain(), shape))


@lowers("Flatten")
def flatten(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Flatten to two axes."""
    source = given(inputs[0])
    axis = int(attrs.get("axis", 1))
    axis = axis + source.rank if axis < 0 else axis
    shape = (math.prod(source.shape[:axis]), math.prod(source.shape[axis:]))
    return of(tf.reshape(source.plain(), shape))


@lowers("Squeeze")
def squeeze(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Squeeze of named axes, or of every axis of size 1."""
    source = given(inputs[0])
    axes = _axes(inputs, attrs, source.rank)
    chosen = axes if axes is not None else [a for a, size in enumerate(source.shape) if size == 1]
    if source.constant:
        return of(np.squeeze(source.plain(), tuple(chosen)))
    tensor = tf.squeeze(source.tensor, [source.order[axis] for axis in chosen])
    return without_axes(source, tensor, chosen)


@lowers("Unsqueeze")
def unsqueeze(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Unsqueeze at named axes of the result."""
    source = given(inputs[0])
    axes = attrs.get("axes") if "axes" in attrs else [int(a) for a in known(optional(inputs, 1), "axes")]
    rank = source.rank + len(axes or ())
    placed = {int(axis) % rank for axis in axes or ()}
    sizes = iter(source.shape)
    shape = [1 if axis in placed else next(sizes) for axis in range(rank)]
    plain = source.plain()
    return of(plain.reshape(shape) if source.constant else tf.reshape(plain, shape))


@lowers("Concat")
def concat(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Concat along one axis."""
    values = [given(value) for value in inputs]
    tensors, order = aligned(values)
    axis = int(attrs["axis"]) % len(order)
    return Value(tf.concat(tensors, axis=order[axis]), order)


@lowers("Pad")
def pad(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Pad with a constant, or by reflection."""
    source = given(inputs[0])
    mode = attrs.get("mode", "constant")
    amounts = [int(value) for value in known(inputs[1], "pads")]
    if optional(inputs, 3) is not None or len(amounts) != 2 * source.rank or min(amounts) < 0:
        raise CannotLowerError("pads of some axes only, or negative ones")
    if mode not in ("constant", "reflect"):
        raise CannotLowerError(f"mode {mode}")
    fill = optional(inputs, 2)
    value = float(known(fill, "value")) if fill is not None else 0.0
    pads = [(0, 0)] * source.rank
    for axis in range(source.rank):
        pads[source.order[axis]] = (amounts[axis], amounts[axis + source.rank])
    return source.with_tensor(tf.pad(source.tensor, pads, mode.upper(), constant_values=value))


def _reduce(operator: str, function: Callable[..., Any]) -> None:
    def lowering(inputs: list[Value | None], attrs: dict[str, Any]) -> Value:
        source = given(inputs[0])
        axes = _axes(inputs, attrs, source.rank)
        chosen = axes if axes is not None else list(range(source.rank))
        keep = bool(attrs.get("keepdims", 1))
        tensor = function(source.tensor, axis=[source.order[axis] for axis in chosen], keepdims=keep)
        return source.with_tensor(tensor) if keep else without_axes(source, tensor, chosen)

    lowers(operator)(lowering)


_reduce("ReduceMean", tf.reduce_mean)
_reduce("ReduceSum", tf.reduce_sum)
_reduce("ReduceMax", tf.reduce_max)


def _axes(inputs: list[Value | None], attrs: dict[str, Any], rank: int) -> list[int] | None:
    """Axes given as an attribute (older opsets) or as an input; None for none."""
    second = optional(inputs, 1)
    found = attrs.get("axes") if second is None else known(second, "axes")
    return None if found is None or len(found) == 0 else [int(axis) % rank for axis in found]


def _resolved(wanted: list[int], shape: tuple[int, ...], *, keep_zero: bool) -> list[int]:
    sizes = [shape[axis] if size == 0 and not keep_zero else size for axis, size in enumerate(wanted)]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // rest if rest else 0
    return sizes


def _channel_move(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axis order by which images go between channel-last and channel-first, where a reshape does just that.

    Exporters write such a reshape for images of one channel or one pixel.
    """
    if len(before) != 4 or len(after) != 4 or before == after:
        return None
    for perm in ((0, 3, 1, 2), (0, 2, 3, 1)):
        moved = [axis for axis in perm if before[axis] != 1]
        if tuple(before[axis] for axis in perm) == after and moved == sorted(moved):
            return perm
    return None
