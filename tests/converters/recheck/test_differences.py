"""Answers of two versions are compared and judged by the tolerance and the budget."""

import numpy as np
import pytest

from converters.recheck.differences import Budget, Share, compare_output, verdict_of

DEFAULT = Budget()
RNG = np.random.default_rng(0)
SCORES = RNG.dirichlet(np.full(4, 0.2), size=400).astype(np.float32)


def compared(answers, reference=SCORES, *, decisions=True, limit=1e-5, budget=DEFAULT):
    return compare_output("y", "proof", reference, answers, decisions=decisions, limit=limit, budget=budget)


def test_equal_bits_are_equal():
    """Also where an answer is NaN in both, because the bits are the same."""
    found = compared(SCORES.copy())
    assert (found.verdict, found.equal, found.max_abs) == ("equal", True, 0.0)
    assert found.decisions.upper == pytest.approx(0.0092, abs=1e-4)
    odd = np.array([[np.nan, 1.0]], np.float32)
    assert compared(odd.copy(), odd).verdict == "equal"


def test_one_other_bit_is_not_equal():
    """Minus zero and zero are other bits."""
    zero = np.zeros((3, 2), np.float32)
    found = compared(-zero, zero, decisions=False)
    assert (found.equal, found.verdict) == (False, "within-budget")


def test_a_difference_within_the_tolerance_meets_any_budget():
    """As with a float artifact: the self-test cannot tell the versions apart."""
    found = compared(SCORES + np.float32(1e-6), budget=Budget(max_drop=0.0))
    assert (found.verdict, found.decisions.count) == ("within-budget", 0)
    assert "allowed 1e-05" in found.reason


def test_a_changed_decision_counts_also_within_the_tolerance():
    """Two nearly equal scores that change places."""
    reference = np.array([[0.5, 0.4999999]] * 20, np.float32)
    found = compared(reference[:, ::-1].copy(), reference)
    assert (found.verdict, found.decisions.count) == ("worse", 20)


def test_few_changes_of_many_are_within_the_budget_and_of_few_are_not():
    """The bound on the share decides, and not the share."""
    many = np.tile(SCORES, (10, 1))
    answers = many.copy()
    answers[:4] = answers[:4, ::-1]
    found = compared(answers, many)
    assert found.decisions.count == 4
    assert found.verdict == "within-budget"
    assert compared(answers[:300], many[:300]).verdict == "worse"


def test_a_shift_of_a_float_output_is_judged_in_its_spread():
    """Offsets of the answers do not make a difference small."""
    reference = (1000.0 + RNG.normal(size=(500, 3))).astype(np.float32)
    near = reference + np.float32(0.001) * RNG.normal(size=reference.shape).astype(np.float32)
    far = reference + np.float32(0.5)
    assert compared(near, reference, decisions=False, limit=None, budget=Budget(0.05)).verdict == "within-budget"
    found = compared(far, reference, decisions=False, limit=None)
    assert found.verdict == "worse"
    assert found.max_spread == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    "answers",
    [None, SCORES[:10], SCORES.astype(np.float64), np.full_like(SCORES, np.nan), np.full_like(SCORES, np.inf)],
    ids=["missing", "shape", "type", "nan", "infinite"],
)
def test_undefined_answers_are_worse_and_have_no_difference(answers):
    """The largest difference is not a number, so none is given."""
    found = compared(answers)
    assert (found.verdict, found.max_abs, found.max_spread) == ("worse", None, None)
    assert found.reason


def test_texts_must_be_equal():
    """A text is right or wrong."""
    words = np.array([b"a", b"b"], object)
    assert compared(words.copy(), words, decisions=False).verdict == "equal"
    assert compared(np.array([b"a", b"c"], object), words, decisions=False).verdict == "worse"


def test_the_outcome_is_the_worst_verdict_and_the_self_test_counts():
    """A bundle whose golden samples fail with the version is worse, whatever the two versions have in common."""
    equal, within, worse = compared(SCORES), compared(SCORES + np.float32(1e-6)), compared(SCORES[:, ::-1].copy())
    assert verdict_of([equal], []) == "equal"
    assert verdict_of([equal, within], []) == "within-budget"
    assert verdict_of([equal, within, worse], []) == "worse"
    assert verdict_of([equal], ["scores: differs"]) == "worse"


def test_the_interval_of_a_share_holds():
    """At least 95 of 100 intervals contain the true share, by simulation."""
    rng = np.random.default_rng(7)
    for true in (0.002, 0.05, 0.5):
        counts = rng.binomial(300, true, size=2000)
        held = [one.lower <= true <= one.upper for one in (Share.of(int(count), 300) for count in counts)]
        assert np.mean(held) >= 0.95
