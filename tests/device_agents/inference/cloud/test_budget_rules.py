"""The rules of the daily budgets of the cloud tier."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.inference.cloud.budget_rules import (
    DAY_SECONDS,
    EARLIEST_CLOCK,
    Budget,
    Spent,
    Verdict,
    add,
    covers,
    judge,
    reserved,
    size_of,
    today,
)

NOON = DAY_SECONDS / 2
COUNTS = st.integers(0, 2000)


@pytest.mark.parametrize(
    ("budget", "spent", "size", "score", "now", "verdict"),
    [
        (Budget(), Spent(0, 10**6, 10**9), 1, 0.9, 0.0, Verdict.ALLOWED),  # no limit
        (Budget(10), Spent(0, 9, 0), 1, None, 0.0, Verdict.ALLOWED),
        (Budget(10), Spent(0, 10, 0), 1, None, NOON, Verdict.SPENT),
        (Budget(0, 100), Spent(0, 1, 60), 40, None, 0.0, Verdict.ALLOWED),
        (Budget(0, 100), Spent(0, 1, 60), 41, None, 0.0, Verdict.SPENT),
        (Budget(10, 100), Spent(0, 10, 60), 1, None, 0.0, Verdict.SPENT),
        (Budget(100), Spent(0, 50, 0), 1, 0.99, NOON, Verdict.ALLOWED),  # on pace
        (Budget(100), Spent(0, 51, 0), 1, 0.99, NOON, Verdict.PACED),
        (Budget(100), Spent(0, 51, 0), 1, 0.85, NOON, Verdict.ALLOWED),  # below (.49 / .5) ** 8
        (Budget(100), Spent(0, 60, 0), 1, 0.17, NOON, Verdict.PACED),
        (Budget(100), Spent(0, 60, 0), 1, 0.16, NOON, Verdict.ALLOWED),
        (Budget(100, 1000), Spent(0, 10, 600), 1, 0.17, NOON, Verdict.PACED),  # the scarcer one counts
    ],
)
def test_a_call_is_judged_by_what_is_left_of_the_budget_and_of_the_day(
    budget: Budget, spent: Spent, size: int, score: float | None, now: float, verdict: Verdict
) -> None:
    """Only answers that can be kept are kept for the pace; the limits hold for all."""
    assert judge(budget, spent, size, score, now) is verdict


def test_a_day_begins_with_the_first_call_after_the_last_one_has_ended() -> None:
    """A clock that is set back gives no budget back."""
    spent = Spent(1000.0, 5, 50)
    assert today(Spent(), 7.0) == Spent(7.0)
    assert today(spent, 1000.0 + DAY_SECONDS - 1) == spent
    assert today(spent, 1000.0 + DAY_SECONDS) == Spent(1000.0 + DAY_SECONDS)
    assert today(spent, 3.0) == Spent(3.0, 5, 50)


def test_a_clock_that_is_not_set_yet_gives_no_further_budget() -> None:
    """A device without a battery starts in 1970 and gets the time later: each start gave a whole budget before."""
    spent, now = Spent(EARLIEST_CLOCK + 5000.0, 5, 50), EARLIEST_CLOCK + 9000.0
    assert today(today(spent, 30.0), now) == spent
    assert today(today(spent, 30.0), now + DAY_SECONDS) == Spent(now + DAY_SECONDS)
    assert today(Spent(30.0, 5, 50), now) == Spent(now, 5, 50)  # the first calls were before the time came
    assert today(spent, DAY_SECONDS, DAY_SECONDS) == Spent(DAY_SECONDS)  # it never comes
    assert judge(Budget(10), today(spent, 30.0), 1, 0.001, 30.0) is Verdict.ALLOWED


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_what_is_stored_is_never_less_than_what_is_spent(
    most_calls: int, most_bytes: int, calls: int, sent: int
) -> None:
    """And it never takes more than a hundredth of a budget, nor more than the budget."""
    budget, spent = Budget(most_calls, most_bytes), Spent(1.0, calls, sent)
    kept = reserved(budget, spent)
    assert covers(budget, kept, spent)
    assert calls <= kept.calls <= max(calls, min(calls + most_calls / 100, most_calls))
    assert sent <= kept.bytes <= max(sent, min(sent + most_bytes / 100, most_bytes))
    assert covers(budget, kept, add(kept, 1)) is not budget.limited
    assert not covers(budget, kept, Spent(2.0))


def _day(budget: Budget, seed: int, requests: int) -> tuple[Spent, list[tuple[float, float]]]:
    """A day of unsure answers at random times: what was spent, and time and score of each answer that was sent."""
    source, spent, sent = random.Random(seed), Spent(0.0), []
    for now in sorted(source.uniform(0, DAY_SECONDS - 1) for _ in range(requests)):
        score, size = source.uniform(0, 0.8), source.randint(1, 200)
        if judge(budget, spent, size, score, now) is Verdict.ALLOWED:
            spent = add(spent, size)
            sent.append((now, score))
    return spent, sent


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("budget", [Budget(100), Budget(0, 10_000), Budget(100, 10_000)])
def test_a_budget_lasts_for_the_day_and_goes_to_the_least_sure_answers(budget: Budget, seed: int) -> None:
    """With ten times more unsure answers than the budget has calls: the last hours are served, and the limits hold."""
    spent, sent = _day(budget, seed, 1000)
    assert spent.calls <= (budget.calls or spent.calls)
    assert spent.bytes <= (budget.bytes or spent.bytes)
    assert max(now for now, _ in sent) > 0.9 * DAY_SECONDS
    assert len(sent) > 60
    assert np.mean([score for now, score in sent if now > NOON]) < 0.2  # of all answers: 0.4


def test_a_budget_that_is_enough_holds_nothing_back() -> None:
    """Even where the day's answers come at random times."""
    spent, sent = _day(Budget(5000), 1, 1000)
    assert len(sent) == spent.calls == 1000


def test_the_size_is_that_of_the_binary_form() -> None:
    """Each element of BYTES has its length before it."""
    texts = np.array([b"abc", b""], dtype=object)
    assert size_of({"x": np.zeros((2, 3), np.float32), "t": texts}) == 24 + 4 + 3 + 4
