"""Ridge least squares of a layer's weights from sums over samples, with the ridge chosen by cross-validation. Pure.

The ridge pulls towards the old weights: minimize |y - W x - b|^2 + ridge * |(W - W_old) D|^2. D holds the standard
deviations of the inputs, so that the ridge has no unit. All arrays have a leading axis for the groups G of a grouped
convolution; each group is a problem of its own with the same ridge.
"""

from __future__ import annotations

import msgspec
import numpy as np

from edgekit.tensors import Array

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
WIDE, WIDE_RIDGES = 900, (1e-3, 1e-2, 1e-1)  # wider layers try fewer ridges, because each needs a factorization
BETTER = 1e-4  # share by which a fit has to be better than what it replaces


class Sums:
    """Sums over samples of the inputs x (G, K) and outputs y (G, O) of a layer.

    Attributes:
        count: Number of samples.
        xx, xy, x, y: Sums of x x^T (G, K, K), x y^T (G, K, O), x (G, K) and y (G, O).
        yy: Sum of the squares of y (G,).
    """

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        self.count = 0
        self.xx, self.xy = np.zeros((groups, inputs, inputs)), np.zeros((groups, inputs, outputs))
        self.x, self.y, self.yy = np.zeros((groups, inputs)), np.zeros((groups, outputs)), np.zeros(groups)

    def add(self, x: Array, y: Array) -> None:
        """Add samples x (n, G, K) and y (n, G, O)."""
        one, other = (np.ascontiguousarray(part.transpose(1, 0, 2), dtype=np.float64) for part in (x, y))
        turned = np.ascontiguousarray(one.transpose(0, 2, 1))  # products of strided arrays are many times slower
        self.count += len(x)
        self.xx += turned @ one
        self.xy += turned @ other
        self.x += one.sum(axis=1)
        self.y += other.sum(axis=1)
        self.yy += np.einsum("gno,gno->g", other, other)

    def __add__(self, other: Sums) -> Sums:
        total = Sums(len(self.x), self.x.shape[1], self.y.shape[1])
        for name in ("count", "xx", "xy", "x", "y", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def error(self, weights: Array, bias: Array) -> float:
        """Sum of the squared errors of y = W x + b with `weights` (G, O, K) and `bias` (G, O)."""
        product = weights @ self.xx
        squares = self.yy.sum() - 2 * np.einsum("gok,gko->", weights, self.xy) + (product * weights).sum()
        offset = np.einsum("gok,gk->go", weights, self.x) - self.y
        return float(max(squares + 2 * (bias * offset).sum() + self.count * (bias**2).sum(), 0.0))


class Fit(msgspec.Struct, frozen=True):
    """Fitted weights (G, O, K) and bias (G, O); mean squared errors on held-out samples `before` and `after`."""

    weights: Array
    bias: Array
    ridge: float
    before: float
    after: float


def fit(folds: list[Sums], weights: Array, bias: Array, *, intercept: bool) -> Fit | None:
    """Fit a layer anew; None where that is not better on held-out samples.

    Each fold is held out once. The ridge with the least error on the held-out folds is used for all samples together.

    Args:
        folds: Sums of two or more parts of the samples.
        weights, bias: The old weights (G, O, K) and bias (G, O).
        intercept: Fit the bias too; else it stays.
    """
    folds = [fold for fold in folds if fold.count]
    if len(folds) < 2:
        return None
    wide = weights.shape[2] > WIDE
    ridges = (*(WIDE_RIDGES if wide else RIDGES), np.inf) if intercept else (WIDE_RIDGES if wide else RIDGES)
    parts = [_joined(folds[:1]), _joined(folds[1:])] if wide and len(folds) > 2 else folds
    errors = np.zeros(len(ridges))
    for place, held in enumerate(parts):
        rest = _joined([one for index, one in enumerate(parts) if index != place])
        for index, (w, b) in enumerate(_solutions(rest, weights, bias, ridges, intercept=intercept)):
            errors[index] += held.error(w, b)
    total = _joined(folds)
    before, best = sum(held.error(weights, bias) for held in parts), int(np.argmin(errors))
    if not errors[best] < before * (1.0 - BETTER):
        return None
    [(w, b)] = _solutions(total, weights, bias, (ridges[best],), intercept=intercept)
    count = total.count * bias.size
    return Fit(w, b, float(ridges[best]), before / count, float(errors[best]) / count)


def _joined(folds: list[Sums]) -> Sums:
    total = folds[0]
    for fold in folds[1:]:
        total = total + fold
    return total


def _solutions(
    sums: Sums, weights: Array, bias: Array, ridges: tuple[float, ...], *, intercept: bool
) -> list[tuple[Array, Array]]:
    """Weights and bias for each ridge; an infinite one changes the bias only."""
    n = sums.count
    xx, xy = sums.xx / n, sums.xy / n
    mean_x, mean_y = sums.x / n, sums.y / n
    if intercept:
        xx = xx - mean_x[:, :, None] * mean_x[:, None, :]
        xy = xy - mean_x[:, :, None] * mean_y[:, None, :]
    else:
        xy = xy - mean_x[:, :, None] * bias[:, None, :]
    deviation = np.sqrt(np.maximum(np.diagonal(xx, axis1=1, axis2=2), 0.0))
    deviation = np.maximum(deviation, 1e-6 * max(float(deviation.max(initial=0.0)), 1e-30))
    scaled = xx / deviation[:, :, None] / deviation[:, None, :]
    wrong = (xy - xx @ weights.transpose(0, 2, 1)) / deviation[:, :, None]
    finite = [ridge for ridge in ridges if np.isfinite(ridge)]
    changes = dict(zip(finite, _changes(scaled, wrong, finite), strict=True))
    found = []
    for ridge in ridges:
        new = weights
        if np.isfinite(ridge):
            new = weights + (changes[ridge] / deviation[:, :, None]).transpose(0, 2, 1)
        found.append((new, mean_y - np.einsum("gok,gk->go", new, mean_x) if intercept else bias))
    return found


def _changes(scaled: Array, wrong: Array, ridges: list[float]) -> list[Array]:
    """Solutions (G, K, O) of (scaled + ridge) change = wrong."""
    if scaled.shape[1] > WIDE or len(ridges) == 1:
        unit = np.eye(scaled.shape[1])
        return [np.linalg.solve(scaled + ridge * unit, wrong) for ridge in ridges]
    values, vectors = np.linalg.eigh(scaled)
    turned = vectors.transpose(0, 2, 1) @ wrong
    return [vectors @ (turned / (np.maximum(values, 0.0)[:, :, None] + ridge)) for ridge in ridges]
