"""Runs every order of events, failures and power cuts that the update table allows, over a model of the disk."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import msgspec

from device_agents.deployment import (
    Activated,
    Booted,
    Cancelled,
    Cleaned,
    Committed,
    Damaged,
    DeadlinePassed,
    Deployment,
    Downloaded,
    Effect,
    Failed,
    Installed,
    Limits,
    Offered,
    Proved,
    Resolved,
    RolledBack,
    Shadowed,
    Staged,
    Tested,
    UpdateRecord,
    UpdateState,
    Verified,
    Watched,
)
from device_agents.update.machine import UpdateMachine


def deployment(release: int, assignment: int = 1) -> Deployment:
    """A deployment of release N, version N.0.0."""
    path = f"models/digits/raspberry-pi-4/{release}.0.0/manifest.json"
    digest = f"{release:064x}"
    return Deployment(digest, 100, path, "digits", f"{release}.0.0", "raspberry-pi-4", release, assignment)


OLD, NEW, NEWER = deployment(1), deployment(2), deployment(3, 2)
BESIDE = msgspec.structs.replace(NEW, shadow=100, shadow_seconds=60)  # NEW, to be compared first
EARLY, LATE = 1.0, 1e6  # before and after the end of a deployment's time
INSTALLED_OLD = Installed("a", OLD.digest, OLD.version, OLD.release)
OUTCOMES = {
    Effect.RESOLVE: Resolved,
    Effect.DOWNLOAD: Downloaded,
    Effect.VERIFY: Verified,
    Effect.STAGE: Staged,
    Effect.TEST: Tested,
    Effect.SHADOW: Shadowed,
    Effect.ACTIVATE: Activated,
    Effect.WATCH: Watched,
    Effect.PROBE: Proved,
    Effect.COMMIT: Committed,
    Effect.ROLL_BACK: RolledBack,
    Effect.CLEAN: Cleaned,
}
FAILURES = (
    Failed(error="TransportError", message="away", passing=True),
    Failed(error="SelfTestError", message="wrong", refused=True),
)


class World(NamedTuple):
    """A device between two events: what the agent remembers and what its disk says."""

    state: UpdateRecord  # in memory
    effect: Effect | None  # under way
    journal: UpdateRecord
    active: str  # pointer, a digest; "" for none
    known_good: str
    slots: tuple[str, str]  # digest that each slot holds in full
    on: bool = True
    harm: int = 0  # how often a slot may still be damaged
    at: float = 0.0  # wall clock; passes from EARLY to LATE at any moment, where it passes


def start(installed: Installed | None, *, harm: int = 0, at: float = 0.0) -> World:
    """A device at rest, with the old bundle or with none; `harm` slots of it may be damaged; with `at` time passes."""
    kept = OLD if installed else None
    state = UpdateRecord(
        active=installed, known_good=installed, kept=kept, release=installed.release if installed else 0
    )
    digest = installed.digest if installed else ""
    return World(state, None, state, digest, digest, (digest, ""), harm=harm, at=at)


def explore(machine: UpdateMachine, first: World, offers: tuple[Deployment, ...]) -> set[World]:
    """Every world that can be reached from `first`."""
    seen, queue = {first}, deque([first])
    while queue:
        for world in _next(machine, queue.popleft(), offers):
            if world not in seen:
                seen.add(world)
                queue.append(world)
    return seen


def _next(machine: UpdateMachine, world: World, offers: tuple[Deployment, ...]) -> list[World]:
    later = [world._replace(at=LATE)] if world.at == EARLY else []
    if not world.on:
        return later + _booted(machine, world._replace(state=world.journal, effect=None, on=True))
    after = [world._replace(on=False), *later]
    for offer in offers:
        after += _stepped(machine, world, Offered(offer))
    after += _stepped(machine, world, Cancelled())
    if world.state.deadline is not None:
        after += _stepped(machine, world, DeadlinePassed())
    if world.harm:
        after += _harmed(machine, world)
    if world.effect is Effect.ROLL_BACK and world.state.known_good and world.state.known_good.digest not in world.slots:
        return after + _stepped(machine, world, _damaged(world, world.state.known_good, answering=False))
    if world.effect is not None:
        done = _done(world, world.effect)
        after.append(done._replace(on=False))  # the power went after the effect and before the journal
        after += _stepped(machine, done, OUTCOMES[world.effect]())
        for failure in FAILURES:  # an effect may fail before it did anything, or after
            after += _stepped(machine, world, failure) + _stepped(machine, done, failure)
    return after


def _booted(machine: UpdateMachine, world: World) -> list[World]:
    """A start: what should answer is not whole, or it is."""
    after = []
    for booted in _stepped(machine, world, Booted()):
        active = booted.state.active
        after.append(booted)
        if booted.on and active is not None and active.digest not in booted.slots:
            after += _stepped(machine, booted, _damaged(booted, active, answering=False))
    return after


def _harmed(machine: UpdateMachine, world: World) -> list[World]:
    """Damages one slot; the damage is found in IDLE at once, or later by an effect that reads the slot."""
    after = []
    for slot in (0, 1):
        slots = ("", world.slots[1]) if slot == 0 else (world.slots[0], "")
        harmed = world._replace(slots=slots, harm=world.harm - 1)
        active = world.state.active
        if world.state.name is UpdateState.IDLE and active is not None and active.slot == "ab"[slot]:
            for answering in (False, True):
                after += _stepped(machine, harmed, _damaged(harmed, active, answering=answering))
        after.append(harmed._replace(on=False))
    return after


def _damaged(world: World, installed: Installed, *, answering: bool) -> Damaged:
    previous = world.state.previous
    whole = previous is not None and world.slots[previous.slot == "b"] == previous.digest
    return Damaged(
        digest=installed.digest, error="DigestMismatchError", message="torn", fallback=whole, answering=answering
    )


def _stepped(machine: UpdateMachine, world: World, event: object) -> list[World]:
    event = msgspec.structs.replace(event, at=world.at)  # type: ignore[type-var]
    step = machine.step(world.state, event, 0.0)
    # Numbers that rise for ever are held, so that the worlds are finitely many.
    state = msgspec.structs.replace(step.state, attempts=min(step.state.attempts, 1), tried=min(step.state.tried, 1))
    assert len(step.effects) <= 1
    kept = world.effect if state.name is world.state.name and state.deadline == world.state.deadline else None
    effect = step.effects[0] if step.effects else kept
    # The journal is one atomic write before the effects: the power goes before it or after it.
    return [world._replace(on=False), world._replace(state=state, effect=effect, journal=state)]


def _done(world: World, effect: Effect) -> World:
    """The changes of one effect on the disk; repeating it changes nothing."""
    state = world.state
    if effect is Effect.STAGE and state.deployment is not None:
        a, b = world.slots
        digest = state.deployment.digest
        return world._replace(slots=(digest, b) if state.inactive_slot == "a" else (a, digest))
    if effect is Effect.ACTIVATE and state.deployment is not None:
        return world._replace(active=world.slots[state.inactive_slot == "b"])
    if effect is Effect.COMMIT and state.active is not None:
        return world._replace(active=state.active.digest, known_good=state.active.digest)
    if effect is Effect.ROLL_BACK:
        digest = state.known_good.digest if state.known_good else ""
        return world._replace(active=digest, known_good=digest)
    return world


def machine(table: dict | None = None) -> UpdateMachine:
    """A machine with two interruptions allowed, and an hour for a deployment."""
    return UpdateMachine(Limits(max_interruptions=2, deployment_hours=1.0), table=table)


def at_rest(worlds: set[World]) -> set[World]:
    """Worlds that are on and wait for nothing."""
    return {w for w in worlds if w.on and w.state.name is UpdateState.IDLE}


def can_return_to_idle(worlds: set[World], stepper: UpdateMachine) -> bool:
    """True when every world reaches IDLE while effects succeed and the power stays."""
    for world in worlds:
        state, effect = (world.state, world.effect) if world.on else (world.journal, None)
        if not world.on:
            step = stepper.step(state, Booted(), 0.0)
            state, effect = step.state, step.effects[0] if step.effects else None
        for _ in range(40):
            if state.name is UpdateState.IDLE and state.deployment is None:
                break
            event = OUTCOMES[effect]() if effect else DeadlinePassed()
            step = stepper.step(state, event, 0.0)
            state, effect = step.state, step.effects[0] if step.effects else None
        else:
            return False
    return True
