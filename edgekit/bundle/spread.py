"""The spread of an output's answers, by which differences are judged.

One output may hold several quantities, for example boxes in pixels beside scores from 0 to 1. So the spread is found
for each group of like columns: a large value hides no small one. Offsets do not count: answers of 1013 and 1018 are 5
apart. Columns of wide outputs, such as pixels or embeddings, are one quantity, unless some of them are scores: there a
column with little spread is a quiet one, not another quantity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from edgekit.tensors import Array

CHUNK_ELEMENTS = 1 << 20  # a part of the answers that is worked on at a time
ROUNDING = 16 * 2.0**-23  # share of the answers' size below which their differences mean nothing
GAP = 10.0  # groups differ in spread by more than this factor
FEW_COLUMNS = 16  # up to so many columns may be quantities of their own, such as a position and an angle
LEAST_SHARE = 1e-3  # of the largest group's spread; a column that is nearly constant is not judged more strictly
LEAST_SCORES = 0.01  # least spread of scores that stand beside larger values


def chunks(values: Array) -> Iterator[Array]:
    """`values` (N, ...) in parts of rows, of about CHUNK_ELEMENTS: float64 copies of a part take little memory."""
    rows = max(1, CHUNK_ELEMENTS // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def spreads(reference: Array) -> Array:
    """The spread of each element of an output: its group's root mean square distance from the mean answer.

    Where all answers are equal, up to rounding, it is their root mean square, or 1 where they are 0.

    Args:
        reference: Answers of the float model (N, ...), finite.

    Returns:
        An array of positive values that broadcasts with `reference`: its axes, each of size 1 or of the full size.
    """
    if not reference.size:
        return np.ones((1,) * reference.ndim)
    elements = _Elements.of(reference)
    best = np.full((1,) * reference.ndim, elements.root())
    if elements.constant:
        return best
    for axis in range(1, reference.ndim):
        others = tuple(i for i in range(reference.ndim - 1) if i != axis - 1)
        columns = np.sqrt(elements.squares.mean(axis=others))
        scores = (elements.lowest.min(axis=others) >= 0.0) & (elements.highest.max(axis=others) <= 1.0)
        found = _grouped(columns, scores)
        if found.max() / found.min() > best.max() / best.min():
            best = found.reshape([-1 if i == axis else 1 for i in range(reference.ndim)])
    return best


def is_constant(reference: Array) -> bool:
    """True where the answers (N, ...) of more than one sample are equal, up to rounding."""
    return len(reference) > 1 and reference.size > 0 and _Elements.of(reference).constant


def largest_deviations(reference: Array, spread: Array) -> Array:
    """The largest distance of an answer from the mean answer, by group of columns; the shape is that of `spread`.

    Never less than the spread.
    """
    mean = reference.mean(axis=0, dtype=np.float64) if len(reference) > 1 else reference[:1]
    result = spread
    for part in chunks(reference):
        result = np.maximum(result, largest_by_group(np.abs(part - mean), spread))
    return result


def largest_by_group(values: Array, spread: Array) -> Array:
    """The largest of `values` (N, ...), 0 or more, in each group of columns; the shape is that of `spread`."""
    if spread.size == 1:
        return np.full(spread.shape, values.max(initial=0.0))
    others = tuple(axis for axis, size in enumerate(spread.shape) if size == 1)
    columns = values.max(axis=others, keepdims=True, initial=0.0)
    result = np.empty(spread.shape)
    for value in np.unique(spread):
        result[spread == value] = columns[spread == value].max()
    return result


def scaled_distances(outputs: Array, reference: Array, spread: Array) -> Array:
    """The distance (N,) of each sample's answer in units of the spread: of its worst group of columns.

    Within a group it is the root mean square of the elements' distances.
    """
    parts = zip(chunks(outputs.reshape(reference.shape)), chunks(reference), strict=True)
    return np.concatenate([np.zeros(0), *(_scaled_distances(*part, spread) for part in parts)])


def _scaled_distances(outputs: Array, reference: Array, spread: Array) -> Array:
    scaled = ((outputs.astype(np.float64) - reference) / spread) ** 2
    if spread.size == 1:
        distances: Array = np.sqrt(scaled.reshape(len(scaled), -1).mean(axis=1))
        return distances
    axis = int(np.argmax(spread.shape))
    by_column = scaled.mean(axis=tuple(i for i in range(1, scaled.ndim) if i != axis))
    flat = spread.reshape(-1)
    groups = [by_column[:, flat == value].mean(axis=1) for value in np.unique(flat)]
    worst: Array = np.sqrt(np.max(groups, axis=0))
    return worst


class _Elements(NamedTuple):
    """Figures of each element of an answer (...) over all samples; float64.

    Attributes:
        squares: Mean square distance from the mean answer.
        lowest, highest: Smallest and largest value.
        powers: Mean square of the values.
    """

    squares: Array
    lowest: Array
    highest: Array
    powers: Array

    @classmethod
    def of(cls, values: Array) -> _Elements:
        """Of `values` (N, ...), N > 0, in parts that bound memory."""
        mean, shape = values.mean(axis=0, dtype=np.float64), values.shape[1:]
        squares, powers = np.zeros(shape), np.zeros(shape)
        for part in chunks(values):
            wide = part.astype(np.float64)
            powers += (wide**2).sum(axis=0)
            squares += ((wide - mean) ** 2).sum(axis=0) if len(values) > 1 else 0.0
        return cls(squares / len(values), values.min(axis=0), values.max(axis=0), powers / len(values))

    @property
    def constant(self) -> bool:
        """True where all answers are equal, up to the rounding of a deep float32 network.

        Every element counts, beside the size of most, and scores beside 1: large constants hide nothing that varies.
        """
        size = np.full(self.powers.shape, np.median(np.sqrt(self.powers)))
        scores = (self.lowest >= 0.0) & (self.highest <= 1.0)
        return bool(np.all(np.sqrt(self.squares) <= ROUNDING * np.where(scores, np.minimum(size, 1.0), size)))

    def root(self) -> float:
        """Root mean square distance from the mean answer; of constant answers their root mean square, or 1."""
        return float(np.sqrt((self.powers if self.constant else self.squares).mean())) or 1.0


def _grouped(columns: Array, scores: Array) -> Array:
    """The spread of each column's group (C,): all equal where the columns are one quantity.

    Args:
        columns: Root mean square distance of each column from its mean (C,).
        scores: True for columns whose values lie between 0 and 1 (C,).
    """
    whole, largest = np.sqrt(np.mean(columns**2)), columns.max(initial=0.0)
    if largest == 0.0:
        return np.ones(len(columns))
    result = np.full(len(columns), whole)
    if scores.any() and not scores.all():
        larger, own = np.sqrt(np.mean(columns[~scores] ** 2)), np.sqrt(np.mean(columns[scores] ** 2))
        if larger > GAP * max(own, LEAST_SCORES):
            result[~scores], result[scores] = larger, max(own, LEAST_SCORES)
            return result
    if 1 < len(columns) <= FEW_COLUMNS and not scores.all():
        order = np.argsort(-columns, kind="stable")
        group = previous = largest
        for place in order:
            if columns[place] * GAP < previous:
                group = max(columns[place], LEAST_SHARE * largest)
            result[place] = group
            previous = max(columns[place], group)
        if result.max() == result.min():
            result[:] = whole
    return result
