"""Values while a graph is lowered: a TensorFlow tensor and the order of its axes.

ONNX convolutions are channel-first and TensorFlow's are channel-last. A value keeps its tensor in whatever order is at
hand and remembers how to read it, so a Transpose costs nothing until somebody needs the real order, and two that
cancel never become an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

Order = tuple[int, ...]


def identity(rank: int) -> Order:
    """The order that changes nothing."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """How a channel-last tensor is read as channel-first: logical axis i is physical axis order[i]."""
    return (0, rank - 1, *range(1, rank - 1))


@dataclass(frozen=True)
class Value:
    """Logical axis i of the value is axis order[i] of `tensor`; constants are numpy arrays in logical order."""

    tensor: Any
    order: Order

    @property
    def constant(self) -> bool:
        """True where it is known before any input."""
        return isinstance(self.tensor, np.ndarray)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.order)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical sizes; every size is fixed while lowering."""
        sizes = self.tensor.shape
        return tuple(int(sizes[axis]) for axis in self.order)

    def in_order(self, order: Order) -> Any:
        """The tensor rearranged so that logical axis i is its axis order[i]."""
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
        return tf.transpose(self.tensor, perm)

    def plain(self) -> Any:
        """The tensor in logical order."""
        return self.in_order(identity(self.rank))

    def with_tensor(self, tensor: Any) -> Value:
        """The same order over another tensor."""
        return Value(tensor, self.order)


def of(tensor: Any) -> Value:
    """A value whose tensor is in logical order."""
    return Value(tensor, identity(len(tensor.shape)))


def without_axes(value: Value, tensor: Any, axes: Sequence[int]) -> Value:
    """The value after its logical `axes` were removed from `tensor`."""
    gone = {value.order[axis] for axis in axes}
    left = [physical for physical in range(value.rank) if physical not in gone]
    order = tuple(left.index(value.order[axis]) for axis in range(value.rank) if axis not in set(axes))
    return Value(tensor, order)


def aligned(values: Sequence[Value]) -> tuple[list[Any], Order]:
    """Tensors of `values` under one common order, ready for broadcasting, and that order.

    The first input of the highest rank leads; constants and lower ranks follow it at no cost at run time.
    """
    rank = max(value.rank for value in values)
    lead = next((value for value in values if value.rank == rank and not value.constant), None)
    order = lead.order if lead is not None else identity(rank)
    tensors = []
    for value in values:
        wide = value
        if value.rank < rank:
            missing = rank - value.rank
            tensor = value.plain()
            shape = (1,) * missing + tuple(int(size) for size in tensor.shape)
            wide = of(tensor.reshape(shape) if value.constant else tf.reshape(tensor, shape))
        tensors.append(wide.in_order(order))
    return tensors, order
