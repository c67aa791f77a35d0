"""Rules about the numbers of a device's reports."""

import pytest

from edgekit.identity.series import KEPT_RUNS, RunHistory, StoredNumbers, is_behind
from edgekit.mqtt.messages import Reported


def report(number, run):
    return Reported("pi-1", "f", number, 0.0, 0, {}, {}, run=run)


@pytest.mark.parametrize(
    ("number", "run", "arrived", "behind"),
    [
        (3, "new", 1100.0, True),
        (3, "", 1100.0, True),  # an older agent
        (90, "old", 1100.0, False),  # late, of the run that is stored
        (3, "new", 1004.0, False),  # another controller was faster
        (100, "new", 1100.0, False),  # a repetition
    ],
)
def test_dropped_report_of_a_lost_disk(number, run, arrived, behind):
    """A lower number of another run, long after the stored report, means that the device lost its numbers."""
    stored = StoredNumbers(report=100, session=7, received=1000.0, run="old")
    assert is_behind(report(number, run), arrived, stored) is behind


def test_only_alternating_runs_are_two_devices():
    """Restarts give new runs; a run that comes back after another one is a second device."""
    history = RunHistory()
    assert [history.note("a", run) for run in "xxyyzz"] == [""] * 6
    assert history.note("b", "x") == ""
    assert history.note("a", "y") == "z"
    assert history.note("a", "z") == "y"
    assert [history.note("a", str(run)) for run in range(1000)] == [""] * 1000
    assert history.note("a", str(1000 - KEPT_RUNS)) == "999"
