"""Every order of events, failures and power cuts leaves a bundle that answers."""

import functools

import pytest

from device_agents.deployment import Booted, DeadlinePassed, Effect, UpdateState
from device_agents.update.machine import _INDEX, Row
from tests.machines.explorer import (
    BESIDE,
    EARLY,
    INSTALLED_OLD,
    LATE,
    NEW,
    NEWER,
    OLD,
    at_rest,
    can_return_to_idle,
    explore,
    machine,
    start,
)

LONG_SECONDS = 70  # of the whole file: it starts early, see tests/conftest.py


@functools.cache
def explored(installed, offers):
    return explore(machine(), start(installed), offers)


# Every order of events and power cuts is explored, tens of thousands of steps: about 15 s.
@pytest.mark.parametrize("installed", [INSTALLED_OLD, None], ids=["over-an-old-bundle", "first-install"])
def test_at_rest_the_pointer_is_old_old_or_new_new(installed):
    """After any failure or power cut, a device at rest has the old or the new bundle, and its state says which."""
    worlds = explored(installed, (NEW, NEWER))
    resting = at_rest(worlds)
    old = OLD.digest if installed else ""
    found = {(w.active, w.known_good) for w in resting}
    assert found == {(old, old), (NEW.digest, NEW.digest), (NEWER.digest, NEWER.digest)}
    for world in resting:
        active = world.state.active.digest if world.state.active else ""
        good = world.state.known_good.digest if world.state.known_good else ""
        assert (active, good) == (world.active, world.known_good)
    assert len(worlds) > 500


def test_the_pointer_never_names_a_slot_without_its_bundle():
    """At every moment, also between two effects, active and known-good are held in full by a slot."""
    for world in explored(INSTALLED_OLD, (NEW, NEWER)):
        assert world.active in world.slots
        assert world.known_good in world.slots


# Three offers in any order: the largest exploration here, about 25 s.
def test_a_committed_bundle_is_never_followed_by_an_older_one():
    """Known-good only rises, although offers come in any order."""
    for world in explored(INSTALLED_OLD, (OLD, NEW, NEWER)):
        if world.state.known_good:
            assert world.state.known_good.release == world.state.release


@pytest.mark.parametrize("installed", [INSTALLED_OLD, None], ids=["over-an-old-bundle", "first-install"])
def test_every_world_can_return_to_idle(installed):
    """There is no dead end: with power and working effects each world comes to rest."""
    assert can_return_to_idle(explored(installed, (NEW, NEWER)), machine())


def test_every_state_is_reached():
    """No row of the table is there for nothing."""
    worlds = explored(INSTALLED_OLD, (OLD, NEW, NEWER)) | explored(INSTALLED_OLD, (BESIDE, NEW))
    assert {world.state.name for world in worlds} == set(UpdateState)


def test_a_bundle_that_is_only_compared_is_never_activated():
    """Whatever happens to the device. Once an assignment lets it be activated, it is, and there is no dead end."""
    compared = explored(INSTALLED_OLD, (BESIDE,))
    assert {world.active for world in compared} == {OLD.digest}
    assert UpdateState.ACTIVATING not in {world.state.name for world in compared}
    released = explored(INSTALLED_OLD, (BESIDE, NEW))
    assert {world.active for world in at_rest(released)} == {OLD.digest, NEW.digest}
    assert can_return_to_idle(compared | released, machine())


@pytest.mark.parametrize("state", [UpdateState.PROBATION, UpdateState.ACTIVATING])
def test_control_a_wrong_boot_rule_is_caught(state):
    """Resuming with cleaning instead of rolling back leaves an unproven bundle active, and the explorer sees it."""
    table = dict(_INDEX)
    for when in ("", "often"):
        table[(state, Booted, when)] = Row(state, Booted, when, UpdateState.CLEANING, (Effect.CLEAN,))
    resting = at_rest(explore(machine(table), start(INSTALLED_OLD), (NEW,)))
    assert any(world.active == NEW.digest and world.known_good == OLD.digest for world in resting)


def test_a_deployment_whose_time_is_over_has_one_step_left_to_hang_in():
    """Whenever the time ends: who then misses a deadline before ACTIVATING is done with, and never tried again."""
    worlds = explore(machine(), start(INSTALLED_OLD, at=EARLY), (NEW,))
    late = [w for w in worlds if w.on and w.at == LATE and w.state.begun == EARLY]
    before = [
        w
        for w in late
        if w.state.name
        in (
            UpdateState.RESOLVING,
            UpdateState.DOWNLOADING,
            UpdateState.VERIFYING,
            UpdateState.STAGING,
            UpdateState.TESTING,
        )
    ]
    assert len({w.state.name for w in before}) == 5
    for world in before:
        assert world.state.deadline is not None
        after = machine().step(world.state, DeadlinePassed(at=LATE), 0.0).state
        assert (after.ending, after.outcome.error) == ("failed", "BudgetError")
    assert {(w.active, w.known_good) for w in at_rest(worlds)} == {(d.digest, d.digest) for d in (OLD, NEW)}
    assert can_return_to_idle(worlds, machine())
