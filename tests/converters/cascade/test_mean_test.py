"""The exact test of a mean, against simulated sums and a search for nulls that break it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from converters.cascade.mean_test import binomial_test, design

LIMIT, ERROR = 0.08, 0.05
VALUES = np.array([[-LIMIT, 1 - LIMIT]] * 3)
RISKS = np.array([0.01, 0.77, 0.2])
SHARES = np.array([[0.8, 0.01], [0.007, 0.023], [0.13, 0.03]])


def passes(test, cells, draws: int, rng) -> float:
    """How often simulated samples with these shares of cells pass the test."""
    labelled = rng.multinomial(test.n, cells.ravel(), draws) @ np.array(test.labelled).ravel()
    plain = rng.multinomial(test.extra, cells.sum(1), draws) @ np.array(test.unlabelled)
    return float(np.mean(labelled + plain >= test.critical))


@pytest.mark.parametrize(("n", "extra"), [(300, 3000), (1000, 10_000)])
def test_no_null_passes_more_often_than_the_error_probability(n: int, extra: int) -> None:
    """Random distributions with a mean loss at the limit, sparse ones among them, pass in at most 5 %."""
    rng, draws = np.random.default_rng(2), 20_000
    test = design(VALUES, SHARES, RISKS, n=n, extra=extra, error=ERROR)
    highest = 0.0
    for concentration in (0.15, 0.3, 0.6, 1.0):
        for _ in range(25):
            lost, fine = (rng.dirichlet(np.full(3, concentration)) * total for total in (LIMIT, 1 - LIMIT))
            highest = max(highest, passes(test, np.stack([fine, lost], 1), draws, rng))
    assert highest <= ERROR + 4 * np.sqrt(ERROR * (1 - ERROR) / draws)


def test_the_sharpened_test_proves_what_the_plain_one_does_not() -> None:
    """On samples as expected, with a mean loss of 6.3 %, unlabelled samples raise the chance of a proof."""
    rng = np.random.default_rng(4)
    cells = SHARES / SHARES.sum()
    sharp = design(VALUES, cells, RISKS, n=1000, extra=10_000, error=ERROR)
    plain = binomial_test(1000, LIMIT, ERROR)
    losses = rng.binomial(1000, cells[:, 1].sum(), 20_000)
    assert passes(sharp, cells, 20_000, rng) > np.mean(-losses >= plain.critical) + 0.05


@pytest.mark.parametrize(("n", "limit"), [(59, 0.05), (1000, 0.08), (10_000, 0.01)])
def test_the_plain_test_is_that_of_clopper_and_pearson(n: int, limit: float) -> None:
    """The largest proven count has an upper limit of at most the claim, and the next count has not."""
    most = -binomial_test(n, limit, ERROR).critical
    assert stats.beta.ppf(1 - ERROR, most + 1, n - most) <= limit < stats.beta.ppf(1 - ERROR, most + 2, n - most - 1)
    assert binomial_test(58, 0.05, ERROR).critical == 1  # nothing is proven
