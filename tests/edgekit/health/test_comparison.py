"""Comparisons hold their level by simulation, and find what differs."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.health.comparison import distance, share_bounds
from edgekit.sketches.sketch import Sketch, made

DRAWS = 2000


def sketch_of(counts: np.ndarray, samples: int | None = None) -> Sketch:
    bins = {int(index): int(counts[index]) for index in np.flatnonzero(counts)}
    return made(0, bins, (0.0, float(len(counts))), samples or int(counts.sum()))


@pytest.mark.parametrize("level", [0.05, 0.3])
@pytest.mark.parametrize(("before", "now"), [(500, 60), (3000, 3000)])
def test_chance_exceeds_the_radius_at_most_as_often_as_stated(level: float, before: int, now: int) -> None:
    """Two sets of one distribution, 2,000 times; a fixed limit without a radius is passed far more often."""
    rng = np.random.default_rng(before + now)
    shares = np.arange(1, 21) / 210
    pairs = zip(rng.multinomial(before, shares, DRAWS), rng.multinomial(now, shares, DRAWS), strict=True)
    found = [distance(sketch_of(one), sketch_of(other), level) for one, other in pairs]
    assert np.mean([one.largest > one.radius for one in found]) <= level
    if now == 60:
        assert np.mean([one.largest > 0.1 for one in found]) > 0.2, "naive: a tenth is no rare difference of 60 samples"


def test_values_of_one_observation_do_not_count_as_many() -> None:
    """64 values of one request move together; counted as independent, chance would raise false alarms."""
    rng = np.random.default_rng(3)

    def requests(count: int) -> np.ndarray:
        return np.bincount(rng.integers(0, 10, count), minlength=10) * 64

    pairs = [(requests(100), requests(100)) for _ in range(500)]
    right = [distance(sketch_of(one, 100), sketch_of(other, 100), 0.05) for one, other in pairs]
    wrong = [distance(sketch_of(one), sketch_of(other), 0.05) for one, other in pairs]
    assert np.mean([one.largest > one.radius for one in right]) <= 0.05
    assert np.mean([one.largest > one.radius for one in wrong]) > 0.5


def test_a_shift_is_found_and_its_direction_known() -> None:
    """A rise is a move upwards; a fall is none."""
    low, high = (np.bincount([place] * 2000, minlength=10) for place in (2, 7))
    up = distance(sketch_of(low), sketch_of(high), 1e-6)
    down = distance(sketch_of(high), sketch_of(low), 1e-6)
    assert up.largest == up.rise == down.largest == 1.0
    assert down.rise == 0.0
    assert up.radius < 0.2


@pytest.mark.parametrize("share", [0.0, 0.004, 0.3, 1.0])
def test_bounds_of_a_share_hold(share: float) -> None:
    """Each is wrong in at most half of the level; of none and of all they are not 0 and 1."""
    rng = np.random.default_rng(int(share * 1000))
    hits = rng.binomial(400, share, DRAWS)
    bounds = [share_bounds(int(one), 400, 0.1) for one in hits]
    assert np.mean([low > share for low, _ in bounds]) <= 0.05
    assert np.mean([high < share for _, high in bounds]) <= 0.05
    assert share_bounds(0, 400, 0.1)[1] > 0
    assert share_bounds(400, 400, 0.1)[0] < 1
