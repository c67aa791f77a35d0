"""Seeded simulations of gates with a control cohort: a common drift of the fleet, worse models in it, and liars."""

import numpy as np
import pytest

from edgekit.rollout.gate_evidence import BESIDE_BETS, CAPITAL, LIMIT, STEPS, weigh_beside
from tests.edgekit.rollout.test_gate_simulation import Fleet, gate, same

RUNS, NEW, OF_REPORT, COMPARISONS = 2000, 40, 5, 1500
DIFFERENCES = np.arange(STEPS) / 4 - 2


class Cohorts:
    """Many runs of a rollout at once; in each step, one device with the new model of every run reports.

    `before` and `after` are shares of good observations of devices with the new model, (devices,), and `control` those
    of devices with the old one, before the rollout and in the same hours. `beside` pairs of the control cohort stand
    beside each comparison; a share `lying` of them is from devices that report what moves the evidence most and is not
    plain.
    """

    def __init__(self, before, after, control, *, beside=4, liars=0, lying=0.0, runs=RUNS, seed=1):
        self.draws = np.random.default_rng(seed)
        self.before, self.after, self.control = before, after, control
        self.beside, self.liars, self.lying, self.runs = beside, liars, lying, runs

    def stopped_at(self, comparisons=COMPARISONS):
        """After how many comparisons each run is stopped, watched after every report; infinity where it is not."""
        factors = np.stack([np.log1p(bet * DIFFERENCES) for bet in BESIDE_BETS])
        steps = np.zeros((STEPS, self.runs, len(self.before)), np.int64)
        logs = np.tile(np.log(CAPITAL), (self.runs, 1))
        found, rows = np.full(self.runs, np.inf), np.arange(self.runs)
        for count in range(OF_REPORT, comparisons + 1, OF_REPORT):
            device = self.draws.integers(len(self.before), size=self.runs)
            for step in self._differences(device):
                steps[step, rows, device] += 1
                logs += factors[:, step].T
            near = ~np.isfinite(found) & (np.exp(logs).sum(axis=1) >= LIMIT)  # all devices together: never less
            if near.any():
                none = np.zeros(steps[0, near].shape, np.int64)
                value = weigh_beside(steps[:, near], none, none, none).value
                found[near] = np.where(value >= LIMIT, count, np.inf)
        return found

    def _differences(self, device):
        shape = (OF_REPORT, self.runs)
        now = (self.draws.random(shape) < self.after[device]) & (device >= self.liars)
        own = (self.draws.random(shape) < self.before[device]).astype(int) - now
        others = self.draws.integers(self.control.shape[1], size=(self.beside, *shape))
        before, after = (self.draws.random(others.shape) < share[others] for share in self.control)
        changes = before.astype(int) - after
        lies = -(self.draws.random(others.shape) < 0.15).astype(int)
        changes = np.where(self.draws.random(others.shape) < self.lying, lies, changes)
        return STEPS // 2 + 4 * own - 4 * changes.sum(axis=0) // self.beside


def cohort(before, now, devices=NEW):
    return np.array([np.full(devices, before), np.full(devices, now)])


def stopped(found):
    return np.isfinite(found).mean()


@pytest.mark.parametrize("beside", [4, 1])
def test_a_common_drift_of_the_fleet_stops_no_equal_model(beside):
    """At most 5 % of 2,000 runs; the comparison with the previous model alone stops nearly all of them."""
    assert stopped(Cohorts(same(0.9), same(0.9), cohort(0.9, 0.9), beside=beside).stopped_at()) <= 0.05
    drift = Cohorts(same(0.9), same(0.8), cohort(0.9, 0.8), beside=beside, seed=2)
    assert stopped(drift.stopped_at()) <= 0.05
    assert stopped(Fleet(same(0.9), same(0.8), runs=300).stopped_at(COMPARISONS, gate)) >= 0.95


def test_devices_may_differ_from_each_other_while_the_fleet_drifts():
    """From 75 % to 99 %, each of them ten points worse: at most 5 % of 2,000 runs stop."""
    spread = np.linspace(0.75, 0.99, NEW)
    drift = Cohorts(spread, spread - 0.1, np.array([spread, spread - 0.1])[:, ::2], seed=3)
    assert stopped(drift.stopped_at()) <= 0.05


def test_a_worse_model_is_found_though_the_fleet_gets_better():
    """A drop of five points, as the world gets five points better: the previous model alone shows nothing."""
    found = Cohorts(same(0.9), same(0.9), cohort(0.9, 0.95), seed=4, runs=500).stopped_at()
    assert stopped(found) >= 0.9
    assert stopped(Fleet(same(0.9), same(0.9), runs=500).stopped_at(COMPARISONS, gate)) <= 0.05


def test_a_drop_from_90_to_85_percent_is_found_with_twice_the_observations_at_most():
    """The comparison with the previous model needs 460 (median); with one pair of the control cohort it needs 950."""
    found = [
        np.median(Cohorts(same(0.9), same(0.85), cohort(0.9, 0.9), beside=beside, seed=5, runs=500).stopped_at(3000))
        for beside in (4, 1)
    ]
    assert found[0] <= 650
    assert found[1] <= 1050


def test_lying_devices_of_either_cohort_stop_no_equal_model():
    """One of 50 with the new model, or one of 40 in the control cohort that lies with care."""
    assert stopped(Cohorts(same(0.9), same(0.9), cohort(0.9, 0.9), liars=1, seed=6).stopped_at()) <= 0.05
    assert stopped(Cohorts(same(0.9), same(0.9), cohort(0.9, 0.9), lying=1 / 40, seed=7).stopped_at()) <= 0.05
