"""Backward elimination of input channels by Optimal Brain Surgeon: which channels the readers need least. Pure.

Removing columns S of weights W, with the others fitted again, adds trace(W_S [(H^-1)_SS]^-1 W_S^T) to the squared error
of a reader. H is the covariance of its inputs (Hassibi and Stork 1993, "Second order derivatives for network pruning";
Frantar and Alistarh 2022, "Optimal brain compression"). A channel that is constant costs nothing: the bias takes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from edgekit.tensors import Array

AT_ONCE = 64
DAMPING = 1e-3  # share of a feature's own variance
DROPPED = 0.25  # share of removed inputs at which they are left out of the matrices
CONSTANT = 1e-9  # share of the mean variance, so that a constant feature has an inverse


class Reader(msgspec.Struct, frozen=True):
    """A layer that reads channels.

    Attributes:
        covariance: Of its inputs (K, K).
        weights: Its weights (O, K).
        owner: By input, the unit that it belongs to (K,); -1 for inputs that always stay.
    """

    covariance: Array
    weights: Array
    owner: Array


class Elimination(msgspec.Struct, frozen=True):
    """The units in the order of their removal (U,), and the lost share of the readers' output energy after each (U,).

    Costs of several readers are added, each as a share of the reader's own output energy.
    """

    order: Array
    costs: Array


def eliminate(readers: Sequence[Reader], units: int) -> Elimination:
    """Remove all of `units` units one after another, each time the one that costs the readers least.

    Of many units, several are removed at a time: one in `AT_ONCE` of those that are left.
    """
    states = [_State(reader, units) for reader in readers]
    left = np.ones(units, dtype=bool)
    order, costs, total, place = np.empty(units, dtype=np.int64), np.zeros(units), 0.0, 0
    while place < units:
        cost = np.sum([state.costs(left) for state in states], axis=0) if states else np.zeros(units)
        cost = np.where(left, cost, np.inf)
        picked = np.argsort(cost, kind="stable")[: max(1, (units - place) // AT_ONCE)]
        for unit in picked.tolist():
            total += float(max(cost[unit], 0.0))
            order[place], costs[place] = unit, total
            place += 1
        left[picked] = False
        for state in states:
            state.remove(picked.tolist())
    return Elimination(order, costs)


class _State:
    """The inverse covariance and the weights of one reader, as units are removed."""

    def __init__(self, reader: Reader, units: int) -> None:
        size = len(reader.covariance)
        mean = float(np.trace(reader.covariance)) / max(size, 1)
        self._energy = float(np.sum((reader.weights @ reader.covariance) * reader.weights, dtype=np.float64)) or 1.0
        damping = DAMPING * np.diag(reader.covariance) + max(CONSTANT * mean, 1e-30)
        damped = reader.covariance.astype(np.float64) + np.diag(damping)
        self._inverse = np.linalg.inv(damped)
        self._weights = reader.weights.astype(np.float64).copy()
        order = np.argsort(reader.owner, kind="stable")
        owners = reader.owner[order]
        starts = np.searchsorted(owners, np.arange(units))
        ends = np.searchsorted(owners, np.arange(units), side="right")
        self._gone = np.zeros(size, dtype=bool)
        self._place([order[start:end] for start, end in zip(starts, ends, strict=True)])

    def _place(self, columns: list[Array]) -> None:
        """Take the columns of each unit."""
        self._columns = columns
        sizes = {len(one) for one in columns} - {0}
        self._present = np.array([len(one) > 0 for one in columns])
        self._stacked = np.stack([one for one in columns if len(one)]) if len(sizes) == 1 else None  # (P, S)

    def costs(self, left: Array) -> Array:
        """The cost of removing each unit next (units,), as a share of the output energy."""
        costs = np.zeros(len(left))
        wanted = np.flatnonzero(left & self._present)
        if not len(wanted):
            return costs
        if self._stacked is None:
            for unit in wanted:
                columns = self._columns[unit]
                block, weights = self._inverse[np.ix_(columns, columns)], self._weights[:, columns]
                costs[unit] = float((np.linalg.solve(block, weights.T) * weights.T).sum())
        else:
            columns = self._stacked[(np.cumsum(self._present) - 1)[wanted]]
            weights = self._weights[:, columns].transpose(1, 2, 0)  # (P, S, O)
            if columns.shape[1] == 1:
                costs[wanted] = (weights[:, 0] ** 2).sum(axis=1) / self._inverse[columns[:, 0], columns[:, 0]]
            else:
                blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
                costs[wanted] = (np.linalg.solve(blocks, weights) * weights).sum(axis=(1, 2))
        result: Array = costs / self._energy
        return result

    def remove(self, units: Sequence[int]) -> None:
        """Remove the columns of some units; the other weights compensate."""
        columns = np.concatenate([self._columns[unit] for unit in units])
        if not len(columns):
            return
        rows = self._inverse[columns]
        factor = np.linalg.solve(rows[:, columns], rows)  # (S, K)
        self._weights -= self._weights[:, columns] @ factor
        self._inverse -= rows.T @ factor
        self._weights[:, columns] = 0.0
        self._inverse[columns] = 0.0
        self._inverse[:, columns] = 0.0
        self._inverse[columns, columns] = 1.0
        self._gone[columns] = True
        if self._gone.sum() > DROPPED * len(self._gone):
            self._drop_gone()

    def _drop_gone(self) -> None:
        """Leave the removed columns out: they are zero, and only cost time."""
        stay = np.flatnonzero(~self._gone)
        number = np.cumsum(~self._gone) - 1
        self._inverse, self._weights = self._inverse[np.ix_(stay, stay)], self._weights[:, stay]
        self._place([number[one[~self._gone[one]]] for one in self._columns])
        self._gone = np.zeros(len(stay), dtype=bool)
