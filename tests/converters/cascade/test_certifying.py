"""Certified thresholds against a pair of models whose accuracy at each threshold is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from converters.cascade.certifying import (
    Goal,
    Pairs,
    certify,
    curve,
    disagreement_bound,
    naive_threshold,
    samples_needed,
    share_bound,
)
from edgekit.certificate.document import ACCURACY, KEPT_ACCURACY, REGRET
from tests.converters.cascade import pairs

GOAL = Goal(ACCURACY, 0.08, 0.05)


def simulate(goal: Goal, n: int, extra: int, draws: int, truth, *, seed: int = 7):
    """Certified and naive thresholds of many seeded draws: shares sent, and how often each breaks its promise."""
    rng, certified, broken, naive = np.random.default_rng(seed), [], 0, 0
    for _ in range(draws):
        fit, proof = pairs.draw(n // 2, rng), pairs.draw(n, rng)
        more = pairs.draw(extra, rng, labels=False) if extra else None
        threshold, guess = certify(goal, fit, proof, more), naive_threshold(proof, goal)
        if threshold is not None:
            certified.append(min(threshold, 1.0))
            broken += truth(min(threshold, 1.0)) > goal.limit
        naive += guess is not None and truth(min(guess, 1.0)) > goal.limit
    return np.array(certified), broken / draws, naive / draws


def pair_loss(threshold: float) -> float:
    return 1 - pairs.accuracy(threshold)


def kept_loss(threshold: float) -> float:
    return 1 - pairs.kept_accuracy(threshold)


def test_the_truth_of_the_generator_is_that_of_its_samples() -> None:
    """The integrals agree with a large sample, so that the simulations judge against the right numbers."""
    drawn, at = pairs.draw(400_000, np.random.default_rng(1)), 0.389
    wrong = np.where(drawn.score >= at, drawn.edge_wrong, drawn.cloud_wrong)
    assert np.mean(wrong) == pytest.approx(pair_loss(at), abs=0.002)
    assert np.mean(drawn.differs & (drawn.score >= at)) == pytest.approx(pairs.kept_and_different(at), abs=0.002)
    assert np.mean(drawn.edge_wrong[drawn.score >= at]) == pytest.approx(kept_loss(at), abs=0.002)
    assert pairs.oracle(0.08) == pytest.approx(0.389, abs=0.001)


def test_a_certified_accuracy_is_broken_in_at_most_5_percent_of_2000_draws() -> None:
    """The promise holds with samples without labels too, and the naive choice breaks it in about half of the draws."""
    certified, broken, naive = simulate(GOAL, 400, 800, 2000, pair_loss)
    assert len(certified) > 1000
    assert broken <= 0.05
    assert naive > 0.3


def test_samples_without_labels_make_the_share_sent_smaller() -> None:
    """1,000 labels and 10,000 samples without: at most 1.37 of the oracle's share is sent; labels alone need 1.4."""
    certified, broken, _ = simulate(GOAL, 1000, 10_000, 250, pair_loss)
    plain, _, _ = simulate(GOAL, 1000, 0, 250, pair_loss)
    assert len(certified) >= 0.94 * 250
    assert broken <= 0.05
    assert certified.mean() / pairs.oracle(0.08) <= 1.37
    assert certified.mean() < plain.mean() - 0.01


def test_ten_thousand_labels_send_little_more_than_the_oracle() -> None:
    """Labels alone: at most 1.11 of the oracle's share."""
    certified, broken, _ = simulate(GOAL, 10_000, 0, 200, pair_loss)
    assert len(certified) == 200
    assert broken <= 0.05
    assert certified.mean() / pairs.oracle(0.08) <= 1.11


@pytest.mark.parametrize(
    ("goal", "extra", "truth"),
    [
        (Goal(REGRET, 0.02, 0.05), 0, pairs.kept_and_different),
        (Goal(REGRET, 0.02, 0.05), 1000, pairs.kept_and_different),
        (Goal(KEPT_ACCURACY, 0.06, 0.05), 0, kept_loss),
        (Goal(KEPT_ACCURACY, 0.06, 0.05), 2000, kept_loss),
    ],
)
def test_the_other_targets_hold_too(goal: Goal, extra: int, truth) -> None:
    """Regret and kept accuracy are broken in at most 5 % of the draws; the naive choice breaks them far more often."""
    certified, broken, naive = simulate(goal, 500, extra, 400, truth)
    assert len(certified) > 200
    assert broken <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    assert naive > 0.2


@pytest.mark.soak
@pytest.mark.parametrize(
    ("goal", "n", "extra", "ratio", "truth"),
    [
        (GOAL, 1000, 10_000, 1.37, pair_loss),
        (GOAL, 3000, 30_000, 1.18, pair_loss),
        (GOAL, 10_000, 0, 1.11, pair_loss),
        (GOAL, 300, 6000, math.inf, pair_loss),
        (Goal(KEPT_ACCURACY, 0.04, 0.05), 1000, 10_000, math.inf, kept_loss),
        (Goal(REGRET, 0.02, 0.05), 1000, 10_000, math.inf, pairs.kept_and_different),
    ],
)
def test_the_promise_and_the_share_sent_over_many_draws(goal, n: int, extra: int, ratio: float, truth) -> None:
    """2,000 draws of each size: the promise, the share sent over the oracle's, and the draws without a certificate.

    An exact test may break its promise in almost 5 %, so the count may be two standard errors above that.
    """
    certified, broken, _ = simulate(goal, n, extra, 2000, truth, seed=11)
    assert broken <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)
    if math.isfinite(ratio):
        assert len(certified) >= 0.94 * 2000
        assert certified.mean() / pairs.oracle(0.08) <= ratio


def test_the_rates_beside_the_target_hold_at_the_chosen_threshold() -> None:
    """Share sent and disagreement on kept samples: bounds at a threshold that the same samples chose hold."""
    rng, broken, slack = np.random.default_rng(3), 0, []
    for _ in range(300):
        fit, proof = pairs.draw(300, rng), pairs.draw(600, rng)
        threshold = certify(GOAL, fit, proof)
        if threshold is None or math.isinf(threshold):
            continue
        share = share_bound(proof, threshold, 0.025)
        rate = disagreement_bound(proof, fit, threshold, share, 0.025)
        true_rate = pairs.kept_and_different(threshold) / (1 - threshold)
        broken += share < threshold or rate < true_rate
        slack.append(rate - true_rate)
    assert broken <= 0.05 * len(slack)
    assert np.mean(slack) < 0.15


def test_without_any_loss_the_number_of_samples_decides() -> None:
    """No loss among 59 samples proves 5 % at 95 %, and among 58 it does not: Clopper and Pearson's known number."""
    goal, right = Goal(ACCURACY, 0.05, 0.05), np.zeros(59, bool)
    fine = Pairs(np.linspace(0, 1, 59), right, right, right)
    assert certify(goal, fine, fine) == 0.0
    assert certify(goal, fine, fine.take(slice(58))) is None


def test_equal_scores_are_kept_or_sent_together() -> None:
    """A saturated score has one threshold only, beside sending everything."""
    n = 2000
    wrong = np.zeros(n, bool)
    wrong[: n // 5] = True
    tied = Pairs(np.ones(n), wrong, wrong, np.zeros(n, bool))
    assert certify(GOAL, tied, tied) == math.inf
    assert curve(tied, ACCURACY).sent.tolist() == [0.0, 1.0]


def test_where_the_cloud_alone_misses_the_target_the_tests_start_elsewhere() -> None:
    """A cloud that is worse than the edge where the edge is sure: sending everything fails, a mixture is certified."""
    rng = np.random.default_rng(5)
    q = rng.random(6000)
    edge, cloud = rng.random(6000) < 0.3 * (q < 0.3), rng.random(6000) < 0.12
    both = Pairs(q, edge != cloud, edge, cloud)
    threshold = certify(GOAL, both.take(slice(2000)), both.take(slice(2000, 6000)))
    assert threshold is not None
    assert threshold < 0.9


def test_too_few_samples_say_how_many_would_do_and_an_infeasible_target_says_none() -> None:
    """The number of samples that is asked for proves the target in most draws; no number proves more than the cloud."""
    rng = np.random.default_rng(9)
    few = pairs.draw(150, rng)
    needed = samples_needed(GOAL, pairs.draw(4000, rng))
    assert needed is not None
    assert certify(GOAL, few, few.take(slice(40))) is None
    proven = [certify(GOAL, pairs.draw(300, rng), pairs.draw(needed, rng)) is not None for _ in range(60)]
    assert np.mean(proven) > 0.6
    assert samples_needed(Goal(ACCURACY, 0.03, 0.05), pairs.draw(4000, rng)) is None
