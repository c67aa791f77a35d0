"""The rules that judge live requests in probation."""

import pytest

from device_agents.update.probation import ProbationLimits, enough, live_faults

BEFORE = {"runs": 1000.0, "run_us": 9e9, "runtime_errors": 500.0, "unusable": 7.0}


def after(runs=0, ms=0.0, errors=0, unusable=0):
    """Counters after so many more runs of a mean time."""
    more = {"runs": runs, "run_us": runs * ms * 1000, "runtime_errors": errors, "unusable": unusable}
    return {name: BEFORE[name] + more[name] for name in BEFORE}


@pytest.mark.parametrize(
    ("found", "faults"),
    [
        (after(), 0),  # nobody asked
        (after(100, 9.9), 0),
        (after(100, 9.9, errors=3, unusable=2), 0),
        (after(100, 9.9, errors=3, unusable=3), 1),
        (after(1, 1.0, errors=1), 1),
        (after(100, 10.1), 1),
        (after(19, 500.0), 0),  # too few for a mean
        (after(100, 10.1, unusable=6), 2),
    ],
)
def test_only_what_came_since_the_activation_counts_and_every_fault_is_told(found, faults):
    """Errors of the bundle before are not the new one's, nor is its time."""
    limits = ProbationLimits(max_error_share=0.05, max_latency_ms=10.0)
    assert len(live_faults(BEFORE, found, limits, final=True)) == faults


def test_a_model_that_was_never_asked_before_has_no_counters():
    """The first bundle of a device is judged all the same."""
    assert live_faults({}, {"runs": 4.0, "unusable": 4.0}, ProbationLimits(), final=True)
    assert not live_faults({}, {}, ProbationLimits(), final=True)


def test_without_a_latency_limit_only_errors_count():
    """A larger model may well be slower; who minds says so."""
    assert not live_faults(BEFORE, after(100, 5000.0), ProbationLimits(), final=True)


def test_enough_is_counted_since_the_activation_and_only_where_it_is_asked_for():
    """No number means that the time decides."""
    assert [enough(BEFORE, after(runs), ProbationLimits(requests=10)) for runs in (0, 9, 10)] == [False, False, True]
    assert not enough(BEFORE, after(10**6), ProbationLimits())


def test_the_first_few_requests_are_judged_in_the_end_and_not_before():
    """One fault among the first is not yet a share."""
    assert not live_faults(BEFORE, after(19, errors=19), ProbationLimits(), final=False)
    assert live_faults(BEFORE, after(20, errors=20), ProbationLimits(), final=False)
    assert live_faults(BEFORE, after(1, errors=1), ProbationLimits(), final=True)
