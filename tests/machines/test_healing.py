"""The update table with damaged slots, and with processes that crash again and again."""

import itertools

import pytest

from device_agents.deployment import (
    Booted,
    Damaged,
    DeadlinePassed,
    Effect,
    Installed,
    Limits,
    UpdateRecord,
    UpdateState,
)
from device_agents.update.machine import _INDEX, Row, UpdateMachine
from tests.machines.explorer import (
    FAILURES,
    INSTALLED_OLD,
    NEW,
    OLD,
    OUTCOMES,
    at_rest,
    can_return_to_idle,
    explore,
    machine,
    start,
)


@pytest.fixture(scope="module")
def harmed():
    """Every world in which one slot is damaged at some moment of an update."""
    return explore(machine(), start(INSTALLED_OLD, harm=1), (NEW,))


def test_a_damaged_slot_at_any_moment_is_no_dead_end(harmed):
    """Every world comes to rest while effects succeed, and what rests knows what it is."""
    assert len(harmed) > 1000
    assert can_return_to_idle(set(itertools.islice(harmed, 0, None, 7)), machine())
    for world in at_rest(harmed):
        if world.state.known_good is not None and world.state.deployment is None:
            assert (world.active, world.known_good) == (world.state.known_good.digest,) * 2


def settle(state, effect):
    """Let every effect succeed until the device rests."""
    stepper = machine()
    for _ in range(40):
        if state.name is UpdateState.IDLE and state.deployment is None:
            return state
        step = stepper.step(state, OUTCOMES[effect]() if effect else DeadlinePassed(), 0.0)
        state, effect = step.state, step.effects[0] if step.effects else None
    raise AssertionError(f"it does not rest: {state}")


PREVIOUS = Installed("b", "0" * 64, "0.9.0", 0)


@pytest.mark.parametrize("previous", [PREVIOUS, None], ids=["with-another-slot", "alone"])
@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("answering", [True, False])
def test_what_was_committed_is_fetched_again_by_itself(previous, fallback, answering):
    """In the end the damaged bundle is whole and answers again, whatever answers meanwhile."""
    fallback = fallback and previous is not None
    state = UpdateRecord(active=INSTALLED_OLD, known_good=INSTALLED_OLD, previous=previous, kept=OLD, release=1)
    event = Damaged(digest=OLD.digest, error="E", message="m", fallback=fallback, answering=answering)
    step = machine().step(state, event, 0.0)
    if fallback:
        assert step.state.known_good == previous
        assert step.state.inactive_slot == "a"  # the damaged one is written, the other one answers
    elif not answering:
        assert step.state.known_good is None
    rested = settle(step.state, step.effects[0] if step.effects else None)
    assert (rested.active.digest, rested.known_good.digest) == (OLD.digest, OLD.digest)
    assert rested.outcome.result == "succeeded"


def test_what_fails_when_it_is_fetched_again_is_given_up():
    """Not for ever: the device rests with what it has, and says how it ended."""
    stepper, effect = machine(), None
    state = UpdateRecord(active=INSTALLED_OLD, known_good=INSTALLED_OLD, kept=OLD, release=1)
    step = stepper.step(state, Damaged(digest=OLD.digest, error="E", message="m"), 0.0)
    for _ in range(20):
        state, effect = step.state, step.effects[0] if step.effects else None
        if state.name is UpdateState.IDLE and state.deployment is None:
            break
        event = FAILURES[1] if effect is Effect.TEST else OUTCOMES[effect]() if effect else DeadlinePassed()
        step = stepper.step(state, event, 0.0)
    assert (state.name, state.kept, state.known_good) == (UpdateState.IDLE, None, None)
    assert (state.outcome.result, state.failed.digest) == ("refused", OLD.digest)


def loads(world, stepper, starts):
    """The bundle that each of `starts` starts would load, each ending the process at once."""
    state, loaded = world.journal, []
    for _ in range(starts):
        state = stepper.step(state, Booted(ended="crash"), 0.0).state
        loaded.append(state.active.digest if state.active else "")
    return loaded


@pytest.fixture(scope="module")
def updated():
    return explore(machine(), start(INSTALLED_OLD), (NEW,))


def suspect(world):
    """The new bundle is active, and its commit is not final."""
    active = world.journal.active
    return (
        active is not None
        and active.digest == NEW.digest
        and (world.journal.watching or world.journal.name != UpdateState.IDLE)
    )


MAX_CRASHES = Limits().max_crashes


def loaded_too_often(worlds, stepper, limit=MAX_CRASHES):
    return [world for world in worlds if suspect(world) and loads(world, stepper, limit + 2)[limit:].count(NEW.digest)]


def test_a_bundle_that_ends_the_process_whenever_it_is_loaded_is_given_up(updated):
    """From every world in which it could have become active, with nothing else ever getting done."""
    assert any(suspect(world) and world.journal.name is UpdateState.IDLE for world in updated)
    assert any(suspect(world) and world.journal.name is UpdateState.COMMITTING for world in updated)
    assert loaded_too_often(updated, machine()) == []


def test_then_the_bundle_before_it_answers(updated):
    """The new bundle is the failed one, and its failure is reported."""
    stepper = machine()
    world = next(
        w for w in updated if suspect(w) and w.journal.name is UpdateState.IDLE and w.journal.deployment is None
    )
    state = world.journal
    for _ in range(MAX_CRASHES):
        state = stepper.step(state, Booted(ended="crash"), 0.0).state
    assert (state.name, state.active.digest, state.failed.digest) == (UpdateState.ROLLING_BACK, OLD.digest, NEW.digest)
    assert (state.outcome.result, state.outcome.error) == ("rolled-back", "CrashLoop")


def test_starts_that_say_nothing_against_the_bundle_do_not_count(updated):
    """An orderly end, or a machine that was switched off."""
    stepper = machine()
    world = next(
        w for w in updated if suspect(w) and w.journal.name is UpdateState.IDLE and w.journal.deployment is None
    )
    for ended in ("order", "cut"):
        state = world.journal
        for _ in range(10):
            state = stepper.step(state, Booted(ended=ended), 0.0).state
        assert state.active.digest == NEW.digest


def test_control_a_boot_rule_that_forgets_crash_loops_is_caught(updated):
    """A wrong row for COMMITTING, and starts that nobody counts: the search sees the bundle loaded for ever."""
    table = dict(_INDEX)
    table[(UpdateState.COMMITTING, Booted, "often")] = Row(
        UpdateState.COMMITTING, Booted, "often", UpdateState.COMMITTING, (Effect.COMMIT,)
    )
    caught = loaded_too_often(updated, machine(table))
    assert {world.journal.name for world in caught} >= {UpdateState.COMMITTING}
    uncounted = UpdateMachine(Limits(max_interruptions=2, max_crashes=10**6))
    caught = loaded_too_often(updated, uncounted, limit=3)
    assert {world.journal.name for world in caught} >= {UpdateState.IDLE, UpdateState.CLEANING}
