"""Score functions of certificates."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.certificate.scoring import (
    ENERGY,
    ENTROPY,
    FEATURES,
    HEAD,
    MARGIN,
    MAX_SOFTMAX,
    ScoreFunction,
    function_faults,
    score,
)

Z = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


def test_the_simple_scores_follow_their_formulas() -> None:
    """Largest probability, margin and entropy of the softmax, and energy of the logits, with a temperature."""
    e = np.exp(Z / 2)
    p = e / e.sum(1, keepdims=True)
    expected = {
        MAX_SOFTMAX: p.max(1),
        MARGIN: p[:, 0] - p[:, 1],
        ENTROPY: 1 + (p * np.log(p)).sum(1) / np.log(3),
        ENERGY: 2 * np.log(e.sum(1)),
    }
    for name, values in expected.items():
        assert score(ScoreFunction(name, "logits", 2.0), Z) == pytest.approx(values), name


def test_probabilities_score_as_the_logits_that_they_come_from() -> None:
    """The logarithm of a probability is a logit; a saturated row of exact 0 and 1 scores like a very sure one."""
    p = np.exp(Z) / np.exp(Z).sum(1, keepdims=True)
    for name in (MAX_SOFTMAX, MARGIN, ENTROPY):
        expected = score(ScoreFunction(name, "logits"), Z)
        assert score(ScoreFunction(name), p.astype(np.float32)) == pytest.approx(expected, abs=1e-5)
        saturated = score(ScoreFunction(name), np.array([[1.0, 0.0, 0.0]]))
        assert saturated == pytest.approx(1.0, abs=1e-4)


def test_the_head_weighs_features_and_the_predicted_class() -> None:
    """With a weight on the largest probability only, the head is that score; a class's constant moves its rows only."""
    weights = np.zeros(FEATURES + 1 + 3)
    weights[1] = 1.0
    plain = score(ScoreFunction(HEAD, "logits", 1.0, tuple(weights)), Z)
    assert plain == pytest.approx(score(ScoreFunction(MAX_SOFTMAX, "logits"), Z))
    weights[FEATURES + 1] = 5.0  # class 0
    moved = score(ScoreFunction(HEAD, "logits", 1.0, tuple(weights)), np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    assert moved[0] > 5.0 > moved[1]


def test_a_row_with_nan_is_never_sure() -> None:
    """Such a row scores below every threshold, whatever the function is."""
    for name in (MAX_SOFTMAX, MARGIN, ENTROPY, ENERGY):
        assert score(ScoreFunction(name, "logits"), np.array([[np.nan, 1.0], [np.inf, 1.0]])).tolist() == [-np.inf] * 2


def test_functions_from_outside_are_checked() -> None:
    """Unknown names, temperatures and weights are named."""
    bad = ScoreFunction("guess", "scores", 0.0, (float("nan"),))
    assert len(function_faults(bad)) == 4
    assert function_faults(ScoreFunction(HEAD, "logits", 1.0, (1.0,)))
    assert not function_faults(ScoreFunction())
