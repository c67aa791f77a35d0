"""The promise of the sequential test, in seeded simulations, and how soon it finds a drift."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.drift import windows
from edgekit.drift.reference import LEVELS
from edgekit.drift.windows import LENGTHS, Windows, moved_share, widest_edge

RUNS, STEPS = 2000, 600


def simulated(seed: int, samples: int, runs: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """A generator, and for each run the edges and weights of a reference of its own."""
    rng = np.random.default_rng(seed)
    ranks = np.array([max(1, round(level * (samples + 1))) for level in LEVELS])
    weights = np.diff(np.concatenate([[0], ranks, [samples + 1]])).astype(float)
    edges = np.sort(rng.standard_normal((runs, samples)), axis=1)[:, ranks - 1]
    return rng, edges, np.tile(weights, (runs, 1))


def first_found(test: Windows, rng: np.random.Generator, edges: np.ndarray, steps: int, shift, *, begin: int = 0):
    """When each run was found to differ, in samples after `begin`; -1 for never."""
    found = np.full(len(edges), -1)
    for step in range(steps):
        values = rng.standard_normal(len(edges))
        buckets = (edges < (shift(values) if step >= begin else values)[:, None]).sum(axis=1)
        for change in test.add(np.arange(len(edges)), buckets):
            if change.differs and found[change.row] < 0:
                found[change.row] = step - begin
    return found


def test_a_naive_test_breaks_the_promise_that_this_one_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 streams without drift, each with a reference of its own, error probability 5 % each, looked at each sample.

    Without the least difference that matters, at most 5 % may ever be found; and in most runs of a chi-square test at
    1 %, after each 50 samples, it is found that nothing has changed when nothing has.
    """
    monkeypatch.setattr(windows, "LEAST", 0.0)
    rng, edges, weights = simulated(1, 200, RUNS)
    test = Windows(weights, 0.05 * RUNS)  # each run is alone: they do not share the error probability
    naive, found = np.zeros(RUNS, bool), np.zeros(RUNS, bool)
    counts, share = np.zeros(weights.shape), weights / weights.sum(axis=1, keepdims=True)
    for step in range(STEPS):
        buckets = (edges < rng.standard_normal(RUNS)[:, None]).sum(axis=1)
        found[[change.row for change in test.add(np.arange(RUNS), buckets) if change.differs]] = True
        counts[np.arange(RUNS), buckets] += 1
        if step % 50 == 49:
            statistic = ((counts - (step + 1) * share) ** 2 / ((step + 1) * share)).sum(axis=1)
            naive |= statistic > 20.09  # chi-square with 8 degrees of freedom, 1 %
    assert 0 < found.mean() <= 0.05, "the promise; and the test is not silent"
    assert naive.mean() > 0.4


@pytest.mark.parametrize(
    ("name", "shift", "median"),
    [
        ("far away", lambda x: x + 5, 10),
        ("two standard deviations", lambda x: x + 2, 20),
        ("one standard deviation", lambda x: x + 1, 80),
        ("half as wide again", lambda x: x * 1.5, 400),
        ("stuck at one value", lambda x: 0 * x, 20),
    ],
)
def test_a_drift_is_found_soon(name: str, shift, median: int) -> None:
    """After the median of the samples that docs/drift.md states, with 10 statistics that share 0.1 %, and always."""
    rng, edges, weights = simulated(2, 1000, 40)
    found = first_found(Windows(weights, 0.001 * 40 / 10), rng, edges, 1000, shift)
    assert found.min() >= 0, name
    assert sorted(found)[20] <= median


def test_a_drift_after_a_long_time_is_found_too() -> None:
    """1,500 good samples before it do not hide it: short windows begin anew."""
    rng, edges, weights = simulated(3, 1000, 20)
    found = first_found(Windows(weights, 0.001 * 20 / 10), rng, edges, 2000, lambda x: x + 1, begin=1500)
    assert found.min() >= 0
    assert sorted(found)[10] <= 200


def test_a_difference_that_does_not_matter_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the samples must have moved, however many prove a smaller move."""
    rng, edges, weights = simulated(4, 20_000, 3)
    assert first_found(Windows(weights, 0.001), rng, edges, 4000, lambda x: x + 0.15).max() == -1
    monkeypatch.setattr(windows, "LEAST", 0.0)
    assert first_found(Windows(weights, 0.001), rng, edges, 4000, lambda x: x + 0.15).max() >= 0


def test_a_drift_ends_after_a_whole_window_without_it() -> None:
    """The same length that found it; then all windows begin anew, and it can be found again."""
    rng, edges, weights = simulated(5, 1000, 1)
    test, seen = Windows(weights, 0.001), []
    for step in range(600):
        value = rng.standard_normal() + (5 if step < 50 or step >= 400 else 0)
        seen += [(change.differs, step) for change in test.add([0], [int((edges[0] < value).sum())])]
    assert [differs for differs, _ in seen] == [True, False, True]
    assert seen[0][1] < 20
    assert seen[1][1] <= 50 + 2 * LENGTHS[0]
    assert 400 <= seen[2][1] < 420


def test_windows_that_were_stored_go_on() -> None:
    """Evidence is computed again from the counts; each window has a new number, and so a stricter limit."""
    rng, edges, weights = simulated(6, 500, 4)
    one = Windows(weights, 0.001)
    first_found(one, rng, edges, 100, lambda x: x + 0.3)
    other = Windows(weights, 0.001)
    other.resume(one.counts, one.numbers, one.raised)
    assert (other.counts == one.counts).all()
    assert (other.numbers == one.numbers + 1).all()
    np.testing.assert_allclose(other._logs, one._logs, atol=1e-9)


def test_rows_without_a_value_are_left_out() -> None:
    """A request without a local answer counts for the inputs only."""
    _, _, weights = simulated(7, 100, 3)
    test = Windows(weights, 0.001)
    assert test.add([0, 2], [4, 0]) == []
    assert test.counts.sum(axis=(1, 2)).tolist() == [3, 0, 3]


def test_how_far_samples_moved_and_where() -> None:
    """All in the last bucket; and a wider spread, which moves the shares at both ends."""
    weights = [1, 4, 15, 20, 20, 20, 15, 4, 2]
    assert (moved_share([0] * 8 + [10], weights), widest_edge([0] * 8 + [10], weights)) == (pytest.approx(99 / 101), 7)
    assert moved_share([5, 0, 0, 0, 0, 0, 0, 0, 5], weights) == pytest.approx(98 / 101)
    assert moved_share(weights, weights) == moved_share([0] * 9, weights) - 0.5 == 0
