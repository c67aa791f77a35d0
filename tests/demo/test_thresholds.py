"""The thresholds of the demo's devices, and the check that the models can show its claims."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.demo.answers import Answers
from edgekit.demo.thresholds import CLOUD_SHARE, choose_threshold, outlook, shortcomings


@given(st.lists(st.floats(0, 1), min_size=2, max_size=200).filter(lambda scores: len(set(scores)) > 1))
def test_some_rows_go_to_the_cloud_and_not_all(scores: list[float]) -> None:
    """The share of rows for the cloud is between 0 and 1 for any scores, also with ties."""
    share = np.mean(np.array(scores) < choose_threshold(np.array(scores)))
    assert 0 < share < 1


def test_the_share_is_near_the_wanted_one() -> None:
    """With many different scores the share is near CLOUD_SHARE; with ties it is the nearest possible share."""
    scores = np.random.default_rng(0).uniform(0, 1, 1000)
    assert abs(np.mean(scores < choose_threshold(scores)) - CLOUD_SHARE) < 0.001
    tied = np.array([0.5] * 20 + [0.9] * 30 + [1.0] * 950)
    assert choose_threshold(tied) == 1.0


def test_equal_scores_cannot_be_divided() -> None:
    """Equal scores are an error, because no threshold divides them."""
    with pytest.raises(ValueError, match="all scores are equal"):
        choose_threshold(np.ones(5))


def answers(right: int, unsure: int, rows: int = 100) -> Answers:
    """Answers whose first `right` rows are right and whose last `unsure` rows have a low score; each label is 1."""
    scores = [0.9] * (rows - unsure) + [0.4] * unsure
    return Answers(labels=[1] * right + [0] * (rows - right), scores=scores)


def test_models_that_show_every_claim_have_no_shortcomings() -> None:
    """The outlook has the figures that a device with this threshold measures."""
    expected = outlook(answers(90, 20), answers(98, 0), np.ones(100, int), 0.5)
    assert (expected.unsure, expected.local, expected.helped, expected.cloud) == (20, 0.9, 0.98, 0.98)
    assert shortcomings({"pi": expected}) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "fault"),
    [
        (answers(95, 20), answers(95, 0), "the cloud model (0.950) is not better than that of pi (0.950)"),
        (answers(95, 20), answers(90, 0), "fallback (0.900) does not improve pi (0.950)"),
        (answers(95, 9), answers(98, 0), "pi is unsure of 9 of 100 rows"),
        (answers(95, 91), answers(98, 0), "pi is unsure of 91 of 100 rows"),
    ],
)
def test_what_a_training_falls_short_of_is_named(ours: Answers, theirs: Answers, fault: str) -> None:
    """Each reason why a model cannot show a claim is named; the demo prints it and trains with the next seed."""
    assert fault in shortcomings({"pi": outlook(ours, theirs, np.ones(100, int), 0.5)})
