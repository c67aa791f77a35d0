"""The UpdateMachine: one transition after another, without I/O."""

import itertools

import msgspec
import pytest

from device_agents.deployment import (
    Activated,
    Booted,
    Cancelled,
    Cleaned,
    Committed,
    DeadlinePassed,
    Downloaded,
    Effect,
    Failed,
    Limits,
    Offered,
    Proved,
    Resolved,
    RolledBack,
    Staged,
    Tested,
    UpdateRecord,
    UpdateState,
    Verified,
    Watched,
)
from device_agents.update.machine import BOOT_TABLE, TABLE, InvalidTransition, UpdateMachine
from tests.machines.explorer import INSTALLED_OLD, NEW, NEWER, OLD

MACHINE = UpdateMachine(Limits(step_timeout_seconds=100, probation_seconds=3, retry_seconds=2, max_retry_seconds=10))
AWAY = Failed(error="TransportError", message="away", passing=True)
WRONG = Failed(error="DigestMismatchError", message="wrong", refused=True)
REST = UpdateRecord(active=INSTALLED_OLD, known_good=INSTALLED_OLD, release=1)
TO_TESTING = (Offered(NEW), Resolved(), Downloaded(), Verified(), Staged())
TO_PROBATION = (*TO_TESTING, Tested(), Activated(at=5.0))


def told(*events, state=REST, now=0.0):
    """The state after events, and every effect on the way."""
    effects = []
    for event in events:
        step = MACHINE.step(state, event, now)
        state = step.state
        effects += step.effects
    return state, effects


def test_a_deployment_that_goes_well():
    """Effects in order, and in the end the new bundle is active and known to be good."""
    state, effects = told(*TO_PROBATION, DeadlinePassed(), Proved(), Committed(at=9.0), Cleaned())
    assert effects == [
        Effect.RESOLVE, Effect.DOWNLOAD, Effect.VERIFY, Effect.STAGE, Effect.TEST,
        Effect.ACTIVATE, Effect.WATCH, Effect.PROBE, Effect.COMMIT, Effect.CLEAN,
    ]  # fmt: skip
    assert state.name is UpdateState.IDLE
    assert state.active == state.known_good
    assert (state.active.slot, state.active.version, state.active.since, state.release) == ("b", "2.0.0", 5.0, 2)
    assert (state.outcome.result, state.outcome.at) == ("succeeded", 9.0)
    assert (state.watching, state.deadline) == (True, 600.0)
    state, _ = told(DeadlinePassed(), state=state)
    assert (state.watching, state.deadline) == (False, None)


@pytest.mark.parametrize("count", range(1, 6))
def test_a_failure_before_activating_never_touches_the_active_slot(count):
    """From every state: clean, rest, and keep the reason."""
    state, effects = told(*TO_TESTING[:count], WRONG, Cleaned())
    assert Effect.ACTIVATE not in effects
    assert Effect.ROLL_BACK not in effects
    assert effects[-1] is Effect.CLEAN
    assert (state.name, state.active, state.outcome.result) == (UpdateState.IDLE, INSTALLED_OLD, "refused")


def test_a_failure_in_probation_rolls_back():
    """Known-good becomes active again, and the outcome says that the bundle ran."""
    state, effects = told(*TO_PROBATION, DeadlinePassed(), WRONG, RolledBack(), Cleaned())
    assert effects[-3:] == [Effect.PROBE, Effect.ROLL_BACK, Effect.CLEAN]
    assert (state.active, state.known_good) == (INSTALLED_OLD, INSTALLED_OLD)
    assert state.outcome.result == "rolled-back"


def test_probation_ends_at_its_time_or_when_enough_was_answered():
    """Then the probe has the time of a step; a fault before that rolls back at once."""
    state, _ = told(*TO_PROBATION, now=10.0)
    assert state.deadline == 10.0 + MACHINE._limits.probation_seconds
    for event in (Watched(), DeadlinePassed()):
        probing, effects = told(event, state=state, now=20.0)
        assert (probing.name, probing.deadline, effects) == (UpdateState.PROBATION, 120.0, [Effect.PROBE])
    state, effects = told(WRONG, state=state)
    assert (state.name, effects) == (UpdateState.ROLLING_BACK, [Effect.ROLL_BACK])


def test_rolling_back_never_gives_up():
    """A roll back that fails is tried again after a while, as often as it takes."""
    state, _ = told(*TO_PROBATION, WRONG)
    for _ in range(5):
        step = MACHINE.step(state, WRONG, 50.0)
        assert (step.state.name, step.effects, step.wake_at) == (UpdateState.ROLLING_BACK, (), 52.0)
        step = MACHINE.step(step.state, DeadlinePassed(), 52.0)
        assert step.effects == (Effect.ROLL_BACK,)
        state = step.state


def test_what_was_refused_is_not_tried_again_until_another_assignment_asks():
    """The retained assignment comes again with every connection; it must not cost a download each time."""
    state, _ = told(*TO_TESTING, WRONG, Cleaned())
    again, effects = told(Offered(NEW), state=state)
    assert (again.name, effects) == (UpdateState.IDLE, [])
    later = msgspec.structs.replace(NEW, assignment=7)
    assert told(Offered(later), state=state)[1] == [Effect.RESOLVE]
    assert told(Offered(NEWER), state=state)[1] == [Effect.RESOLVE]


def test_a_passing_failure_is_tried_again_with_growing_delays_and_no_outcome():
    """The controller sees no failure, since none has happened yet."""
    state, _ = told(Offered(NEW), Resolved())
    delays = []
    for _ in range(5):
        state, _ = told(AWAY, Cleaned(), state=state, now=1000.0)
        assert (state.name, state.deployment, state.outcome) == (UpdateState.IDLE, NEW, None)
        assert state.note == "TransportError: away"
        delays.append(state.deadline - 1000.0)
        state, effects = told(DeadlinePassed(), state=state)
        assert effects == [Effect.RESOLVE]
    assert delays == [2, 4, 8, 10, 10]


def test_what_failed_attempts_fetched_is_added_up_until_another_deployment():
    """The byte budget is a deployment's and not an attempt's."""
    failed = Failed(error="TransportError", message="away", passing=True, fetched=1000)
    state, _ = told(Offered(NEW), Resolved(), failed, Cleaned(), DeadlinePassed(), Resolved(), failed, Cleaned())
    assert state.fetched == 2000
    state, _ = told(Offered(NEWER), state=state)
    assert state.fetched == 0


def test_an_offer_that_waits_is_taken_up_at_once_when_it_comes_again():
    """A new connection brings the assignment again, and is the best time for another attempt."""
    state, _ = told(Offered(NEW), AWAY, Cleaned())
    assert told(Offered(NEW), state=state)[1] == [Effect.RESOLVE]


def test_a_newer_offer_supersedes_a_transfer_but_waits_for_an_activation():
    """Before ACTIVATING the old work is dropped; from there on it is brought to its end first."""
    state, effects = told(Offered(NEW), Resolved(), Offered(NEWER), Cleaned())
    assert effects[-2:] == [Effect.CLEAN, Effect.RESOLVE]
    assert (state.deployment, state.outcome) == (NEWER, None)
    state, effects = told(*TO_PROBATION, Offered(NEWER))
    assert (state.name, state.offered) == (UpdateState.PROBATION, NEWER)
    state, effects = told(DeadlinePassed(), Proved(), Committed(), Cleaned(), state=state)
    assert (state.name, state.deployment, state.active.version) == (UpdateState.RESOLVING, NEWER, "2.0.0")


def test_a_cancel_ends_a_transfer_and_leaves_an_activation_alone():
    """There is no outcome, since nobody wants to know."""
    state, effects = told(Offered(NEW), Resolved(), Cancelled(), Cleaned())
    assert (state.name, state.deployment, state.outcome, effects[-1]) == (UpdateState.IDLE, None, None, Effect.CLEAN)
    state, effects = told(*TO_PROBATION, Cancelled())
    assert (state.name, effects[-1]) == (UpdateState.PROBATION, Effect.WATCH)


@pytest.mark.parametrize("waits", [(), (Cleaned(),)], ids=["about to wait", "waits"])
@pytest.mark.parametrize("ends", [Offered(OLD), Cancelled()], ids=["what runs", "nothing"])
def test_the_blocks_of_a_deployment_that_waits_are_removed_when_it_is_withdrawn(waits, ends):
    """A cleaning that keeps them for the next attempt is begun again."""
    failed = Failed(error="MeteredError", message="it costs", passing=True, waiting="metered")
    state, _ = told(Offered(NEW), Resolved(), failed, *waits)
    assert state.deployment == NEW
    state, effects = told(ends, state=state)
    assert (state.name, state.ending, effects) == (UpdateState.CLEANING, "dropped", [Effect.CLEAN])
    state, _ = told(Cleaned(), state=state)
    assert (state.name, state.deployment, state.offered) == (UpdateState.IDLE, None, None)


def test_going_back_to_what_runs_drops_the_transfer():
    """An aborted rollout offers the running bundle again."""
    state, effects = told(Offered(NEW), Resolved(), Offered(OLD), Cleaned())
    assert (state.name, state.deployment, effects[-1]) == (UpdateState.IDLE, None, Effect.CLEAN)


def test_an_older_release_is_refused_at_rest_and_after_a_transfer():
    """The floor is what this device has committed, not what the assignment says."""
    rest, _ = told(*TO_PROBATION, DeadlinePassed(), Proved(), Committed(), Cleaned())
    state, effects = told(Offered(OLD), state=rest)
    assert (effects, state.outcome.error) == ([], "DowngradeError")
    state, effects = told(Offered(NEWER), Offered(OLD), Cleaned(), state=rest)
    assert (state.name, state.outcome.error) == (UpdateState.IDLE, "DowngradeError")


def test_each_step_has_a_deadline_and_missing_it_is_a_failure():
    """A hung transfer is tried again; a hung test is not."""
    for count, passing in ((2, True), (5, False)):
        state, _ = told(*TO_TESTING[:count], now=10.0)
        assert state.deadline == 110.0
        state, _ = told(DeadlinePassed(), Cleaned(), state=state)
        assert (state.outcome is None) is passing


def test_a_bundle_that_stops_the_device_again_and_again_is_refused():
    """A crash in the runtime looks like a power cut; three of them in a row do not."""
    state, _ = told(*TO_TESTING)
    for _ in range(2):
        state, effects = told(Booted(), state=state)
        assert (state.name, effects) == (UpdateState.TESTING, [Effect.TEST])
    state, effects = told(Booted(), Cleaned(), state=state)
    assert (state.name, state.outcome.result, state.outcome.error) == (UpdateState.IDLE, "refused", "Interrupted")


def test_a_stop_in_probation_rolls_back_and_tries_again():
    """The first time it may have been the power."""
    state, effects = told(*TO_PROBATION, Booted())
    assert (state.name, effects[-1]) == (UpdateState.ROLLING_BACK, Effect.ROLL_BACK)
    state, _ = told(RolledBack(), Cleaned(), state=state)
    assert (state.name, state.deployment, state.outcome) == (UpdateState.IDLE, NEW, None)


def test_no_two_rows_answer_the_same_case():
    """The table is a function."""
    keys = [(row.state, row.event, row.when) for row in (*TABLE, *BOOT_TABLE)]
    assert len(keys) == len(set(keys))


def test_whoever_asks_from_outside_gets_an_answer_in_every_state():
    """Offered, Cancelled and Booted have a row in each state."""
    rows = {(row.state, row.event) for row in (*TABLE, *BOOT_TABLE)}
    for state, event in itertools.product(UpdateState, (Offered, Cancelled, Booted)):
        assert (state, event) in rows


@pytest.mark.parametrize(
    ("state", "event"),
    [(UpdateState.IDLE, Downloaded()), (UpdateState.TESTING, Committed()), (UpdateState.CLEANING, Proved())],
)
def test_an_event_without_a_row_is_a_bug_and_changes_nothing(state, event):
    """The shell never sends it; if it does, nobody guesses."""
    with pytest.raises(InvalidTransition, match=type(event).__name__):
        MACHINE.step(UpdateRecord(name=state, deployment=NEW), event, 0.0)


def test_a_state_survives_the_journal():
    """A record reads back as it was written."""
    state, _ = told(*TO_PROBATION)
    assert msgspec.json.decode(msgspec.json.encode(state), type=UpdateRecord) == state


COSTLY = Failed(error="TransportError", message="away", passing=True, costly=True)


def give_up(failure, limits, hours=0.0):
    """How often a deployment is tried whose download always fails; and the state then."""
    stepper, state = UpdateMachine(limits), REST
    for attempt in range(1, 60):
        for event in (DeadlinePassed() if attempt > 1 else Offered(NEW, at=1e9), Resolved()):
            state = stepper.step(state, event, 0.0).state
        state = stepper.step(state, msgspec.structs.replace(failure, at=1e9 + attempt * hours * 3600), 0.0).state
        state = stepper.step(state, Cleaned(), 0.0).state
        if state.deployment is None:
            return attempt, state
    return None, state


def test_attempts_that_cost_something_are_counted_and_the_others_are_not():
    """A week without a broker is no reason to give up; fifty aborted transfers are."""
    attempts, state = give_up(COSTLY, Limits(deployment_attempts=5))
    assert (attempts, state.outcome.result, state.outcome.error) == (5, "failed", "BudgetError")
    assert state.outcome.message == "5 attempts failed; the last failure was TransportError: away"
    assert told(Offered(NEW), state=state)[0].deployment is None, "the same assignment does not begin it anew"
    assert give_up(AWAY, Limits(deployment_attempts=5))[0] is None


def test_a_deployment_has_its_time():
    """Counted from when it was first asked for."""
    attempts, state = give_up(AWAY, Limits(deployment_hours=10.0), hours=4.0)
    assert attempts == 3
    assert "12.0 h ago, its limit is 10 h" in state.outcome.message


STEPS = ("RESOLVING", "DOWNLOADING", "VERIFYING", "STAGING", "TESTING")
HOUR = Limits(step_timeout_seconds=86_400.0, deployment_hours=1.0)


@pytest.mark.parametrize("count", range(1, 6))
def test_a_deployment_that_hangs_is_ended_by_its_time(count):
    """One step of one attempt, which fails never, is given what is left of the hour and not its whole day."""
    stepper, state = UpdateMachine(HOUR), REST
    for done, event in enumerate(TO_TESTING[:count]):
        state = stepper.step(state, msgspec.structs.replace(event, at=1e9 + 60 * done), 60.0 * done).state
    assert state.deadline == 3601.0
    state = stepper.step(state, DeadlinePassed(at=1e9 + 3601), 3601.0).state
    assert (state.ending, state.outcome.result, state.outcome.error) == ("failed", "failed", "BudgetError")
    assert f"its limit is 1 h; the last failure was DeadlinePassed: {STEPS[count - 1]}" in state.outcome.message


def test_what_a_restart_takes_up_after_its_time_is_ended():
    """A device that stops again and again in the middle of a transfer never fails, and still has an end."""
    stepper, state = UpdateMachine(HOUR), REST
    for event in (Offered(NEW, at=1e9), Resolved(at=1e9)):
        state = stepper.step(state, event, 0.0).state
    for half_hours, deadline in ((1, 1801.0), (3, 1.0)):
        state = stepper.step(state, Booted(at=1e9 + 1800 * half_hours), 0.0).state
        assert (state.name, state.deadline) == (UpdateState.DOWNLOADING, deadline)
    state = stepper.step(state, DeadlinePassed(at=1e9 + 5401), 1.0).state
    assert state.outcome.error == "BudgetError"


def test_what_goes_well_is_not_ended_by_its_time():
    """The download came late, and is worth more than an hour that has passed."""
    stepper, state = UpdateMachine(HOUR), REST
    for event in (Offered(NEW, at=1e9), Resolved(at=1e9), Downloaded(at=1e9 + 3600.5), Verified(at=1e9 + 3600.5)):
        state = stepper.step(state, event, 0.0).state
    assert (state.name, state.deadline) == (UpdateState.STAGING, 86_400.0)
