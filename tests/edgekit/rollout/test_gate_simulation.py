"""Seeded simulations of the sequential test of gates: false stops, drops that are found, and devices that lie."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from edgekit.rollout.gate_evidence import BETS, CAPITAL, LIMIT, weigh

RUNS, DEVICES, OF_REPORT = 2000, 50, 5
BEFORE, WORSE = 0.90, 0.85


class Fleet:
    """Many runs of a rollout at once; in each step, one device of every run reports some pairs of observations.

    `before` and `after` are shares of good observations, (devices,); devices with a number below `liars` report that
    each answer of the new model is bad.
    """

    def __init__(self, before, after, *, liars=0, runs=RUNS, seed=1):
        self.draws = np.random.default_rng(seed)
        self.before, self.after, self.liars = before, after, liars
        shape = (runs, len(before))
        self.worse, self.equal, self.better = (np.zeros(shape, np.int64) for _ in range(3))
        self.good, self.pairs = np.zeros((runs, 2)), 0
        self.rows = np.arange(runs)

    def report(self):
        device = self.draws.integers(len(self.before), size=len(self.rows))
        shape = (OF_REPORT, len(self.rows))
        before = self.draws.random(shape) < self.before[device]
        after = (self.draws.random(shape) < self.after[device]) & (device >= self.liars)
        for counts, which in (
            (self.worse, before & ~after),
            (self.equal, before == after),
            (self.better, after & ~before),
        ):
            counts[self.rows, device] += which.sum(axis=0)
        self.good += np.stack([before.sum(axis=0), after.sum(axis=0)], axis=1)
        self.pairs += OF_REPORT

    def stopped_at(self, pairs, test):
        """After how many pairs each run is stopped by `test`, watched after every report; infinity where it is not."""
        found = np.full(len(self.rows), np.inf)
        while self.pairs < pairs:
            self.report()
            found = np.minimum(found, np.where(test(self), self.pairs, np.inf))
        return found


def gate(fleet, margin=0.0):
    """Where the gate stops. Only runs in which all devices together reach the limit are weighed, which is faster."""
    stops = weigh_all(fleet.worse, fleet.equal, fleet.better, margin) >= LIMIT
    counts = (one[stops] for one in (fleet.worse, fleet.equal, fleet.better))
    stops[stops] = weigh(*counts, margin).value >= LIMIT
    return stops


def weigh_all(worse, equal, better, margin=0.0):
    """The capital where all devices count, which is never less."""
    counts = [one.sum(axis=-1) for one in (worse, equal, better)]
    bets = [bet / (1 + margin) for bet in BETS]
    factors = [[np.log1p(bet * (difference - margin)) for difference in (1, 0, -1)] for bet in bets]
    logs = [sum(count * one for count, one in zip(counts, of_bet, strict=True)) for of_bet in factors]
    return (np.exp(np.minimum(np.stack(logs, axis=-1), 300)) * CAPITAL).sum(axis=-1)


def naive(fleet):
    """The usual one-sided test of two shares at the 5 % level, repeated after every report."""
    before, after = (fleet.good / fleet.pairs).T
    pooled = (before + after) / 2
    error = np.sqrt(np.maximum(2 * pooled * (1 - pooled) / fleet.pairs, 1e-12))
    return (before - after) / error > NormalDist().inv_cdf(0.95)


def fixed_size(before, after, level=0.05, power=0.95):
    """Observations of each model that the one-sided test of fixed size needs."""
    mean, z = (before + after) / 2, NormalDist().inv_cdf
    error = z(1 - level) * math.sqrt(2 * mean * (1 - mean))
    error += z(power) * math.sqrt(before * (1 - before) + after * (1 - after))
    return (error / (before - after)) ** 2


def same(share, devices=DEVICES):
    return np.full(devices, share)


def test_an_equal_model_is_rarely_stopped_though_it_is_watched_after_every_report():
    """Of 2,000 runs at most 5 % stop, also where the devices differ; the usual test, repeated, stops many."""
    assert np.isfinite(Fleet(same(BEFORE), same(BEFORE)).stopped_at(1500, gate)).mean() <= 0.05
    spread = np.linspace(0.75, 0.99, DEVICES)
    assert np.isfinite(Fleet(spread, spread, seed=2, runs=500).stopped_at(1500, gate)).mean() <= 0.05
    assert np.isfinite(Fleet(same(BEFORE), same(BEFORE)).stopped_at(1500, naive)).mean() >= 0.20


@pytest.mark.parametrize(("devices", "runs"), [(50, RUNS), (100, 500), (200, 500)])
def test_a_drop_from_90_to_85_percent_is_found_with_60_percent_of_the_observations_of_a_fixed_size(devices, runs):
    """In the median run, with 945 observations of each model for the test of fixed size."""
    needed = fixed_size(BEFORE, WORSE)
    assert 940 < needed < 950
    found = Fleet(same(BEFORE, devices), same(WORSE, devices), seed=3, runs=runs).stopped_at(600, gate)
    assert np.median(found) <= 0.6 * needed


@pytest.mark.parametrize(("devices", "liars", "runs"), [(50, 1, RUNS), (100, 2, 300), (200, 4, 300)])
def test_two_percent_of_lying_devices_stop_no_equal_model(devices, liars, runs):
    """At most 5 % false stops with devices that call every answer bad."""
    equal = Fleet(same(BEFORE, devices), same(BEFORE, devices), liars=liars, seed=4, runs=runs)
    assert np.isfinite(equal.stopped_at(1500, gate)).mean() <= 0.05


def test_devices_that_lie_with_care_raise_the_capital_threefold_at_most():
    """Whatever they report, where they are not more than those that may be set apart."""
    draws = np.random.default_rng(9)
    for devices, liars in ((50, 1), (120, 3), (200, 4)):
        counts = [draws.integers(0, 6, size=(200, devices)) for _ in range(3)]
        honest = [one.copy() for one in counts]
        for kind, one in enumerate(counts):
            one[:, :liars] = draws.integers(0, 30, size=(200, liars)) * (kind != 2)
            honest[kind][:, :liars] = 0
        assert (weigh(*counts).value <= 3.0001 * weigh_all(*honest)).all()


def test_lying_devices_hide_no_drop():
    """The usual test, repeated, is stopped by one of them."""
    one = Fleet(same(BEFORE), same(BEFORE), liars=1, seed=5, runs=500)
    assert np.isfinite(one.stopped_at(1500, naive)).mean() >= 0.30
    worse = Fleet(same(BEFORE), same(WORSE), liars=1, seed=6, runs=500)
    assert np.isfinite(worse.stopped_at(1500, gate)).mean() >= 0.85


def test_a_single_device_stops_no_rollout():
    """Whatever it reports, its evidence does not count alone."""
    alone = weigh([500, 0, 0], [0, 20, 20], [0, 0, 0])
    assert alone.value < 2
    assert alone.dropped == 1
    assert weigh([40, 40, 40], [0, 0, 0], [0, 0, 0]).value > LIMIT


def test_the_margin_is_allowed():
    """A drop within the margin stops rarely; a larger one is found."""

    def with_margin(fleet):
        return gate(fleet, 0.02)

    allowed = Fleet(same(BEFORE), same(0.88), seed=7, runs=300)
    assert np.isfinite(allowed.stopped_at(1500, with_margin)).mean() <= 0.05
    worse = Fleet(same(BEFORE), same(0.80), seed=8, runs=300)
    assert np.isfinite(worse.stopped_at(1500, with_margin)).mean() >= 0.95
