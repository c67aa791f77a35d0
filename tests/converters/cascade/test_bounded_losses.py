"""Losses between 0 and 1 in place of right and wrong: the promise on their mean holds."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from converters.cascade.bounded_losses import mean_is_below, measured
from converters.cascade.certifying import Goal, Pairs, certify
from edgekit.certificate.document import ACCURACY, KEPT_ACCURACY
from edgekit.errors import DataError
from tests.converters.cascade import pairs

LIMIT = 0.06  # half of the losses of the classifiers whose wrong answers these losses are a part of


def draw(n: int, rng: np.random.Generator) -> Pairs:
    """Wrong answers are wrong by a part from 0 to 1, one half in the mean."""
    made = pairs.draw(n, rng)
    assert made.edge_wrong is not None
    assert made.cloud_wrong is not None
    edge, cloud = (one * rng.random(n) for one in (made.edge_wrong, made.cloud_wrong))
    return msgspec.structs.replace(made, edge_wrong=edge, cloud_wrong=cloud)


def test_the_mean_of_a_bounded_loss_is_broken_in_at_most_5_percent_of_1000_draws() -> None:
    """The true mean at the certified threshold, and certificates that send less than everything."""
    rng, certified, broken, goal = np.random.default_rng(3), [], 0, Goal(ACCURACY, LIMIT, 0.05)
    for _ in range(1000):
        threshold = certify(goal, draw(200, rng), draw(600, rng))
        if threshold is not None:
            certified.append(min(threshold, 1.0))
            broken += (1 - pairs.accuracy(min(threshold, 1.0))) / 2 > LIMIT
    assert broken <= 0.05 * 1000
    assert len(certified) > 900
    assert np.mean(certified) < 0.75
    naive = np.mean([np.mean(draw(600, rng).edge_wrong) for _ in range(50)])
    assert naive > LIMIT  # keeping everything would break the promise


def test_the_test_of_a_mean_keeps_its_error_at_the_limit() -> None:
    """Losses whose mean is the limit itself: right and wrong, and parts."""
    rng, n = np.random.default_rng(4), 300
    for losses in (rng.random((4000, n)) < 0.1, rng.random((4000, n)) * 0.2, rng.beta(0.1, 0.9, (4000, n))):
        assert np.mean(mean_is_below(losses.sum(1), n, 0.1, 0.05)) <= 0.05
    assert mean_is_below(np.array([0.0, 12.0, 29.9, 300.0]), n, 0.1, 0.05).tolist() == [True, True, False, False]


class Share:
    """A loss for the test."""

    name = "share"

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __call__(self, outputs: object, labels: object) -> np.ndarray:
        return self._values


@pytest.mark.parametrize("values", [[0.5], [0.5, 1.1], [0.5, -0.1], [0.5, np.nan], [[0.5], [0.5]]])
def test_a_loss_that_is_not_bounded_is_refused(values) -> None:
    """The message names the loss."""
    with pytest.raises(DataError, match="loss 'share' gives values"):
        measured(Share(np.array(values)), {}, np.zeros(2))
    assert measured(Share(np.array([0, 1])), {}, np.zeros(2)).tolist() == [0.0, 1.0]
    some = draw(50, np.random.default_rng(1))
    with pytest.raises(ValueError, match="no certificate of kept-accuracy"):
        certify(Goal(KEPT_ACCURACY, 0.1, 0.05), some, some)
