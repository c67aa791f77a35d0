"""An exact test that a mean of three or more values is below a limit, sharpened by samples without labels. Pure.

Each sample falls into one cell (stratum, loss); each cell has a value, and the claim is that the mean value is below 0.
The stratum is known without a label. Samples without labels tell how large the strata are, so that part of the chance
in the labelled mean is taken out (a control variate; Angelopoulos et al. 2023 call it prediction-powered inference).

The statistic is a sum over the samples of ``-(x + weight/2 x^2)``, where x is the value less the expected value of its
stratum. The second term stands for the variance, which is not known: a null with another variance than the expected
one gains nothing by it. So one critical value holds for every null, and hardly any power is lost. The critical value
is computed, not approximated: scores are integers, the distribution of their sum is the inverse Fourier transform of
its characteristic function, and the worst null is searched among all distributions over the cells with mean 0.
"""

from __future__ import annotations

import functools

import msgspec
import numpy as np
from scipy import stats

from edgekit.tensors import Array

LEAST_LABELLED = 300  # below, the steps of the sum are too large for samples without labels to help
MOST_UNLABELLED = 20  # samples without a label for each one with; more make no difference
GUARD = 0.99  # share of the error probability that is spent; the search for the worst null may miss it by a little
_FEW = 1000  # labelled samples; below, sums over two cells have steps that the expansion does not see
_SEED = 20260301
_STARTS, _KEPT, _CHILDREN, _EXACT = 2000, 30, 20, 4
_SCALES = (1.0, 0.6, 0.4, 0.3, 0.2, 0.1)  # of the steps of the search, from coarse to fine
_STEP = 1.3
_GRID = 400  # least number of integer steps in a value of 1
_SPREAD = 9  # standard deviations to each side that the transform covers

Cells = tuple[tuple[float, float], ...]


class MeanTest(msgspec.Struct, frozen=True):
    """A test of one claim; it holds with the stated error probability whatever the distribution over the cells is.

    Attributes:
        labelled: Score of each stratum (rows) without and with loss (columns), integers.
        unlabelled: Score of each stratum for samples without a label, integers.
        critical: The claim is proven where the sum of all scores is at least this.
        n, extra: Samples with and without labels.
    """

    labelled: tuple[tuple[int, int], ...]
    unlabelled: tuple[int, ...]
    critical: int
    n: int
    extra: int


def binomial_test(n: int, limit: float, error: float) -> MeanTest:
    """The test of Clopper and Pearson (1934) that a share is below `limit`: -1 for a loss, 0 for none."""
    most = int(stats.binom.ppf(error, n, limit))
    if stats.binom.cdf(most, n, limit) > error:
        most -= 1
    return MeanTest(((0, -1),), (0,), -most if most >= 0 else 1, n, 0)


def design(values: Array, shares: Array, risks: Array, *, n: int, extra: int, error: float) -> MeanTest:
    """Design a test for `n` samples with labels and `extra` without.

    Args:
        values: Value of each cell (J, 2), without and with loss, each between -1 and 1; with loss is larger.
        shares: Expected share of each cell (J, 2).
        risks: Expected share of losses in each stratum (J,). Shares and risks are from other samples than those that
            are tested. They decide how sharp the test is, and not whether it holds.
        n, extra: Samples with and without labels; `extra` at most MOST_UNLABELLED times `n`.
        error: Probability that the test proves a claim that is false.
    """
    shares = np.maximum(np.asarray(shares, dtype=np.float64), 0.5 / max(n, 1))
    strata = shares.sum(1)
    expected = values[:, 0] + (values[:, 1] - values[:, 0]) * np.asarray(risks)
    steps = max(_GRID, _GRID * -(-extra // (10 * n)))
    unit = extra / (n * steps)  # of what is taken from labelled samples, so that the others give back exactly as much
    taken = np.zeros(len(values), np.int64)  # in units; coarse, so that tests of similar samples share one design
    if extra:
        coarse = max(1, round(0.1 / unit))
        taken = coarse * np.rint((expected - expected[0]) * (extra / (extra + n)) / (unit * coarse)).astype(np.int64)
    centre = round(float((strata * taken).sum() / strata.sum()) * unit, 1)
    variance = float((shares * (values - (taken * unit)[:, None]) ** 2).sum() / shares.sum())
    variance = max(variance, 1.0 / n)
    deviation = _STEP ** round(float(np.log(variance) / 2 / np.log(_STEP)))
    weight = min(float(stats.norm.isf(error)) / (deviation * np.sqrt(n)), 1.0)
    cells = tuple((float(a), float(b)) for a, b in np.asarray(values))
    return _designed(cells, tuple(map(int, taken)), centre, weight, steps, n, extra, error)


@functools.lru_cache(maxsize=512)
def _designed(
    cells: Cells, taken: tuple[int, ...], centre: float, weight: float, steps: int, n: int, extra: int, error: float
) -> MeanTest:
    values, units = np.array(cells), np.array(taken)
    x = values - (units * extra / (n * steps))[:, None] + centre
    exact = -steps * (x + weight / 2 * x**2)
    labelled = np.rint(exact - exact[0, 0]).astype(np.int64)  # most samples are in the first cell: no rounding there
    sums = _Sums(labelled.ravel(), -units, n, extra)
    critical = _critical(values, sums, GUARD * error)
    return MeanTest(tuple((int(a), int(b)) for a, b in labelled), tuple(map(int, -units)), critical, n, extra)


class _Sums(msgspec.Struct, frozen=True):
    """The distribution of the sum of scores, for given shares of the cells."""

    labelled: Array
    unlabelled: Array
    n: int
    extra: int

    def moments(self, cells: Array) -> tuple[Array, Array, Array]:
        """Mean, variance and third central moment for each row of `cells` (M, 2J)."""
        total = [np.zeros(len(cells))] * 3
        strata = cells.reshape(len(cells), -1, 2).sum(2)
        for count, shares, scores in ((self.n, cells, self.labelled), (self.extra, strata, self.unlabelled)):
            score = scores.astype(np.float64)
            first, second, third = (shares @ score**power for power in (1, 2, 3))
            own = (first, second - first**2, third - 3 * first * second + 2 * first**3)
            total = [a + count * b for a, b in zip(total, own, strict=True)]
        return total[0], total[1], total[2]

    def quantiles(self, cells: Array, error: float) -> Array:
        """Approximately the value that the sum reaches with probability `error`, for each row of `cells` (M, 2J).

        The expansion of Cornish and Fisher (1937), to the skewness.
        """
        mean, variance, third = self.moments(cells)
        deviation, z = np.sqrt(np.maximum(variance, 1e-9)), float(stats.norm.isf(error))
        result: Array = mean + deviation * z + third / (6 * np.maximum(variance, 1e-9)) * (z * z - 1)
        return result

    def smallest(self, cells: Array, error: float) -> int:
        """The smallest critical value that the sum reaches with a probability of at most `error`; exact."""
        mean, variance, _ = self.moments(cells[None])
        size = 1 << int(np.ceil(np.log2(2 * _SPREAD * np.sqrt(variance[0]) + 64)))
        turns = 2j * np.pi / size * np.arange(size // 2 + 1)
        transform = (np.exp(np.outer(turns, self.labelled)) @ cells) ** self.n
        if self.extra:
            strata = cells.reshape(-1, 2).sum(1)
            transform = transform * (np.exp(np.outer(turns, self.unlabelled)) @ strata) ** self.extra
        low = round(float(mean[0])) - size // 2
        probabilities = np.roll(np.fft.irfft(np.conj(transform), size), -(low % size))
        tails = np.cumsum(probabilities[::-1])[::-1]
        return low + int(np.argmax(tails <= error))


def _critical(values: Array, sums: _Sums, error: float) -> int:
    """The critical value for the worst distribution over the cells whose mean value is 0.

    A mean above 0 is never worse: turning losses into none, within a stratum, only raises the sum.
    """
    rng = np.random.default_rng(_SEED)
    flat = values.ravel()
    cells = np.concatenate([_nulls(flat, rng.dirichlet(np.full(len(flat), c), _STARTS)) for c in (0.15, 0.5)])
    for scale in _SCALES:
        best = cells[np.argsort(-sums.quantiles(cells, error))[:_KEPT]]
        moved = np.repeat(best, _CHILDREN, axis=0) * np.exp(rng.normal(0, scale, (_KEPT * _CHILDREN, len(flat))))
        cells = np.concatenate([best, _nulls(flat, moved)])
    order = np.argsort(-sums.quantiles(cells, error))
    worst = cells[order[: _EXACT * 8 : 8]]
    if sums.n < _FEW:
        worst = np.concatenate([worst, _nulls(flat, _pairs(flat))])
    return max(sums.smallest(one, error) for one in worst)


def _pairs(values: Array) -> Array:
    """Weights (M, C) of two cells each, one above 0 and one below."""
    couples = [(a, b) for a in np.flatnonzero(values > 0) for b in np.flatnonzero(values < 0)]
    weights = np.zeros((len(couples), len(values)))
    for row, couple in enumerate(couples):
        weights[row, list(couple)] = 1.0
    return weights


def _nulls(values: Array, weights: Array) -> Array:
    """Distributions over the cells with mean value 0: the cells above 0 and those below are weighed against each other.

    Args:
        values: Value of each cell (C,).
        weights: Positive weights (M, C).
    """
    weights = np.maximum(weights, 1e-12)
    above = (weights * np.maximum(values, 0)).sum(1, keepdims=True)
    below = (weights * np.maximum(-values, 0)).sum(1, keepdims=True)
    balanced = weights * np.where(values > 0, below, np.where(values < 0, above, np.sqrt(above * below)))
    result: Array = balanced / balanced.sum(1, keepdims=True)
    return result
