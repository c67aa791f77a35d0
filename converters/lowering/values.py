"""Values during lowering: a TensorFlow tensor and the order of its axes.

ONNX convolutions are channel-first, TensorFlow's are channel-last. A value stores the order of its axes beside the
tensor. A Transpose therefore changes only the order, and becomes an operator only if an operator needs another order.
Two transposes that cancel out never become operators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

Order = tuple[int, ...]
MOST_AXES = 6  # of LiteRT's TRANSPOSE
FEW_AXES = 3  # that accelerators transpose


def identity(rank: int) -> Order:
    """The order that changes nothing."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """The order of a channel-last tensor: logical (channel-first) axis i is physical axis order[i]."""
    return (0, rank - 1, *range(1, rank - 1))


def _merged(perm: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """The axes of a transposition in their new order; those that stay beside each other are one part. No axis of 1."""
    parts: list[list[int]] = []
    for axis in (axis for axis in perm if sizes[axis] != 1):
        between = sizes[parts[-1][-1] + 1 : axis] if parts and parts[-1][-1] < axis else None
        if between is not None and all(size == 1 for size in between):
            parts[-1].append(axis)
        else:
            parts.append([axis])
    return parts


def _transposed(tensor: Any, perm: Sequence[int]) -> Any:
    """The transposition, of fewer axes where more than three move and some stay beside each other.

    Accelerators transpose three axes. The reshapes around it vanish where others are beside them.
    """
    sizes = [int(size) for size in tensor.shape]
    parts = _merged(perm, sizes)
    moved = sum(map(len, parts))
    if moved > FEW_AXES and len(parts) < moved:
        old = sorted(parts)
        flat = tf.reshape(tensor, [math.prod(sizes[axis] for axis in part) for part in old])
        return tf.reshape(tf.transpose(flat, [old.index(part) for part in parts]), [sizes[axis] for axis in perm])
    return tf.transpose(tensor, perm) if moved <= MOST_AXES else _in_steps(tensor, perm)


def _in_steps(tensor: Any, perm: Sequence[int]) -> Any:
    """A transposition of more axes than LiteRT transposes at once: one axis after the other moves to its place."""
    left = list(range(len(perm)))
    for place, axis in enumerate(perm):
        at = left.index(axis)
        if at == place:
            continue
        sizes = [int(size) for size in tensor.shape]
        blocks = [math.prod(part) for part in (sizes[:place], sizes[place:at], sizes[at : at + 1], sizes[at + 1 :])]
        left.insert(place, left.pop(at))
        sizes.insert(place, sizes.pop(at))
        tensor = tf.reshape(tf.transpose(tf.reshape(tensor, blocks), (0, 2, 1, 3)), sizes)
    return tensor


@dataclass(frozen=True)
class Value:
    """Logical axis i of the value is axis order[i] of `tensor`; constants are numpy arrays in logical order.

    `trained` is True for a tensor in the place of a constant, whose values training changes. `unsigned` is the number
    of bits of an unsigned type that another type carries (see `operators.bits`); 0 for all others.
    """

    tensor: Any
    order: Order
    trained: bool = False
    unsigned: int = 0

    @property
    def constant(self) -> bool:
        """True if the value does not depend on the model's inputs."""
        return isinstance(self.tensor, np.ndarray)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.order)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical sizes; every size is fixed during lowering."""
        sizes = self.tensor.shape
        return tuple(int(sizes[axis]) for axis in self.order)

    def in_order(self, order: Order) -> Any:
        """The tensor transposed so that logical axis i is its axis order[i]."""
        if order == self.order:
            return self.tensor
        # new axis order[i] holds old axis self.order[i]
        perm = [0] * self.rank
        for new, old in zip(order, self.order, strict=True):
            perm[new] = old
        if self.constant:
            return np.transpose(self.tensor, perm)
        sizes = [int(size) for size in self.tensor.shape]
        moved = [axis for axis in perm if sizes[axis] != 1]
        if moved == sorted(moved):  # only axes of size 1 move: the same elements in the same order
            return tf.reshape(self.tensor, [sizes[axis] for axis in perm])
        return _transposed(self.tensor, perm)

    def plain(self) -> Any:
        """The tensor in logical order."""
        return self.in_order(identity(self.rank))

    def with_tensor(self, tensor: Any) -> Value:
        """A value of another tensor with the same order."""
        return Value(tensor, self.order)


def of(tensor: Any) -> Value:
    """A value whose tensor is in logical order."""
    return Value(tensor, identity(len(tensor.shape)))


def without_axes(value: Value, tensor: Any, axes: Sequence[int]) -> Value:
    """The value of `tensor`, which lacks the logical `axes` of `value`."""
    removed = {value.order[axis] for axis in axes}
    remaining = [physical for physical in range(value.rank) if physical not in removed]
    order = tuple(remaining.index(value.order[axis]) for axis in range(value.rank) if axis not in set(axes))
    return Value(tensor, order)


def aligned(values: Sequence[Value]) -> tuple[list[Any], Order]:
    """Tensors of `values` in one common order, ready for broadcasting, and that order.

    The order is that of the first value of the highest rank that is not constant. Reordering constants costs no time on
    the device.
    """
    rank = max(value.rank for value in values)
    lead = next((value for value in values if value.rank == rank and not value.constant), None)
    order = lead.order if lead is not None else identity(rank)
    tensors = []
    for value in values:
        extended = value
        if value.rank < rank:
            missing = rank - value.rank
            tensor = value.plain()
            shape = (1,) * missing + tuple(int(size) for size in tensor.shape)
            extended = of(tensor.reshape(shape) if value.constant else tf.reshape(tensor, shape))
        tensors.append(extended.in_order(order))
    return tensors, order
