"""Einsum as one matrix product: the axes of both values are sorted, and those of a kind become one axis."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, lowers, required
from converters.lowering.values import Value, of


@lowers("Einsum")
def einsum(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Einsum of two values, each with every axis once in its term."""
    left, right = (required(value) for value in inputs) if len(inputs) == 2 else (None, None)
    equation = attrs["equation"].replace(" ", "")
    if left is None or right is None or "->" not in equation:
        raise CannotLowerError(f"the equation {equation!r} (supported: two values, and the axes of the result named)")
    first, second, result = _terms(equation, [left.rank, right.rank])
    if any(len(set(term)) < len(term) for term in (first, second, result)):
        raise CannotLowerError(f"the equation {equation!r} (supported: each axis once in a term)")
    first, a = _summed(first, left.plain(), second + result)
    second, b = _summed(second, right.plain(), first + result)
    own = [dict(zip(term, map(int, tensor.shape), strict=True)) for term, tensor in ((first, a), (second, b))]
    if any(own[0][one] != own[1][one] for one in first if one in second):
        raise CannotLowerError(f"the equation {equation!r} for axes of one name and different sizes")
    sizes = {**own[0], **own[1]}
    batch = [one for one in first if one in second and one in result]
    inner = [one for one in first if one in second and one not in result]
    rows, columns = ([one for one in term if one not in other] for term, other in ((first, second), (second, first)))
    product = tf.matmul(
        _grouped(a, first, [batch, rows, inner], sizes),
        attrs["variable"](_grouped(b, second, [batch, inner, columns], sizes)),
    )
    order = [*batch, *rows, *columns]
    whole = tf.reshape(product, [sizes[one] for one in order])
    moved = [order.index(one) for one in result]
    return of(whole if moved == sorted(moved) else tf.transpose(whole, moved))


def _terms(equation: str, ranks: Sequence[int]) -> list[str]:
    """The terms of both values and of the result, with letters in place of dots."""
    terms, result = equation.partition("->")[0].split(","), equation.partition("->")[2]
    counts = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    free = [letter for letter in string.ascii_letters if letter not in equation]
    dots = "".join(free[: max(counts)])
    return [term.replace("...", dots) for term in (*terms, result)]


def _summed(term: str, tensor: Any, others: str) -> tuple[str, Any]:
    """A value without the axes that only its own term has; and its term without them."""
    alone = [axis for axis, letter in enumerate(term) if letter not in others]
    if not alone:
        return term, tensor
    add = np.sum if isinstance(tensor, np.ndarray) else tf.reduce_sum
    return "".join(one for one in term if one in others), add(tensor, axis=tuple(alone))


def _grouped(tensor: Any, term: str, groups: list[list[str]], sizes: dict[str, int]) -> Any:
    """A value with its axes in the order of `groups`, each group one axis; the first one only where it has axes."""
    order = [term.index(letter) for group in groups for letter in group]
    shape = [math.prod(sizes[letter] for letter in group) for group in groups]
    shape = shape if groups[0] else shape[1:]
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor.transpose(order).reshape(shape))
    moved = tensor if order == sorted(order) else tf.transpose(tensor, order)
    return tf.reshape(moved, shape)
