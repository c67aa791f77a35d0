"""The spread of an output's answers, by which differences are judged.

One output may hold several quantities, for example boxes in pixels beside scores from 0 to 1. So the spread is found
for each group of like columns: a large value hides no small one. Offsets do not count: answers of 1013 and 1018 are 5
apart. Columns of wide outputs, such as pixels or embeddings, are one quantity, unless some of them are scores: there a
column with little spread is a quiet one, not another quantity.
"""

from __future__ import annotations

import numpy as np

from edgekit.tensors import Array

GAP = 10.0  # groups differ in spread by more than this factor
FEW_COLUMNS = 16  # up to so many columns may be quantities of their own, such as a position and an angle
LEAST_SHARE = 1e-3  # of the largest group's spread; a column that is nearly constant is not judged more strictly
LEAST_SCORES = 0.01  # least spread of scores that stand beside larger values


def spreads(reference: Array) -> Array:
    """The spread of each element of an output: its group's root mean square distance from the mean answer.

    Where all answers are equal it is their root mean square, or 1 where they are 0.

    Args:
        reference: Answers of the float model (N, ...), finite.

    Returns:
        An array of positive values that broadcasts with `reference`: its axes, each of size 1 or of the full size.
    """
    values = reference.astype(np.float64)
    if not values.size:
        return np.ones((1,) * values.ndim)
    squares = _centered_squares(values)
    best = np.full((1,) * values.ndim, _root(squares, values))
    for axis in range(1, values.ndim):
        others = tuple(i for i in range(values.ndim) if i != axis)
        columns = np.sqrt(squares.mean(axis=others))
        scores = (values.min(axis=others) >= 0.0) & (values.max(axis=others) <= 1.0)
        found = _grouped(columns, scores)
        if found.max() / found.min() > best.max() / best.min():
            best = found.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return best


def largest_deviations(reference: Array, spread: Array) -> Array:
    """The largest distance of an answer from the mean answer, by group of columns; the shape is that of `spread`.

    Never less than the spread.
    """
    distances = np.sqrt(_centered_squares(reference.astype(np.float64)))
    result: Array = np.maximum(largest_by_group(distances, spread), spread)
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
    scaled = ((outputs.astype(np.float64).reshape(reference.shape) - reference) / spread) ** 2
    if spread.size == 1:
        distances: Array = np.sqrt(scaled.reshape(len(scaled), -1).mean(axis=1))
        return distances
    axis = int(np.argmax(spread.shape))
    by_column = scaled.mean(axis=tuple(i for i in range(1, scaled.ndim) if i != axis))
    flat = spread.reshape(-1)
    groups = [by_column[:, flat == value].mean(axis=1) for value in np.unique(flat)]
    worst: Array = np.sqrt(np.max(groups, axis=0))
    return worst


def _centered_squares(values: Array) -> Array:
    squares: Array = (values - values.mean(axis=0)) ** 2 if len(values) > 1 else np.zeros_like(values)
    return squares


def _root(squares: Array, values: Array) -> float:
    for one in (squares, values**2):
        spread = float(np.sqrt(one.mean())) if one.size else 0.0
        if spread > 0.0:
            return spread
    return 1.0


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
