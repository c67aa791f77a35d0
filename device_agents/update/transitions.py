"""The new state of an update after each event. Pure functions; `machine` has the table of states and events."""

from __future__ import annotations

import math

import msgspec

from device_agents.deployment import (
    Booted,
    Committed,
    Damaged,
    Deployment,
    Failed,
    Installed,
    Limits,
    Offered,
    UpdateEvent,
    UpdateRecord,
    UpdateState,
)
from edgekit.bundle.order import is_older
from edgekit.mqtt.messages import Outcome, Waiting

PENDING = "pending"  # part of the case of an event that ends a deployment which waits for another attempt
OLDER = "DowngradeError"  # class name of the error with which an older bundle is refused


def replace(state: UpdateRecord, **changes: object) -> UpdateRecord:
    """`state` with some fields changed."""
    return msgspec.structs.replace(state, **changes)


# --- offers


def offer_case(state: UpdateRecord, offer: Deployment) -> str:
    """The case of an offer: ``wanted``, ``unchanged``, ``released`` or, in IDLE, ``older``.

    It has PENDING too where it drops a retry.
    """
    pending = is_pending(state) and idle_offer_case(state, offer) != "wanted"
    if state.name is UpdateState.IDLE:
        return idle_offer_case(state, offer) + (f", {PENDING}" if pending else "")
    if is_release(state, offer):
        return "released"
    target = state.offered or (None if state.ending in ("failed", "dropped") else state.deployment)
    if target is not None and target.digest == offer.digest:
        return "unchanged"
    if target is None and _settled(state, offer):
        return "unchanged"
    return PENDING if pending else "wanted"


def idle_offer_case(state: UpdateRecord, offer: Deployment) -> str:
    """As `offer_case`, in IDLE."""
    if _settled(state, offer):
        return "unchanged"
    older = is_older(offer.version, offer.release, than=state.highest, than_release=state.release)
    return "older" if older and not offer.downgrade else "wanted"


def offer(state: UpdateRecord, event: Offered, case: str, *, was: UpdateState, before: bool) -> UpdateRecord:
    """After an offer in state `was`; `before` is True while the active slot is untouched."""
    offer = event.deployment
    if was is UpdateState.IDLE and case == "wanted":
        again = state.deployment is not None and state.deployment.digest == offer.digest
        state = state if again else _reset_attempts(state, event.at)
        return replace(state, deployment=offer, ending="", note="")
    if was is UpdateState.IDLE:
        state = _dropped(_note_running_offer(state, offer)) if PENDING in case else _note_running_offer(state, offer)
        state = _end_deployment(state)
        return _refuse_older(state, offer, event.at) if case.startswith("older") else state
    if case == "released":
        return replace(state, deployment=offer)
    if case == "unchanged":
        return _note_repeated_offer(state, offer)
    return replace(state, offered=offer, ending="dropped" if before or case == PENDING else state.ending)


def is_release(state: UpdateRecord, offer: Deployment) -> bool:
    """True where the offer lets the bundle be activated that is compared beside the active one."""
    deployment = state.deployment if state.name is UpdateState.SHADOWING and state.offered is None else None
    return deployment is not None and deployment.digest == offer.digest and not offer.shadow


def is_pending(state: UpdateRecord) -> bool:
    """True while a deployment waits for another attempt, or is about to; a repair of the committed bundle is none."""
    waits = state.name is UpdateState.IDLE or (state.name is UpdateState.CLEANING and state.ending == "retry")
    return waits and state.deployment is not None and state.deployment != state.kept


def cancel(state: UpdateRecord, case: str, *, was: UpdateState, before: bool) -> UpdateRecord:
    """After the assignment stopped naming a bundle for this model."""
    if was is UpdateState.IDLE:
        return _end_deployment(_dropped(state) if case == PENDING else state)
    dropped = before or state.ending == "retry"
    return replace(state, offered=None, ending="dropped" if dropped else state.ending)


def _settled(state: UpdateRecord, offer: Deployment) -> bool:
    """True when the offered bundle already runs and is whole, or has failed for good under the same assignment."""
    repairing = (
        state.name is UpdateState.IDLE and state.deployment is not None and state.deployment.digest == offer.digest
    )
    runs = state.known_good is not None and state.known_good.digest == offer.digest and not repairing
    failed = state.failed
    return runs or (failed is not None and (failed.digest, failed.assignment) == (offer.digest, offer.assignment))


def _note_running_offer(state: UpdateRecord, offer: Deployment) -> UpdateRecord:
    """Store the newest offer of the running bundle, so that it can be fetched again.

    An older bundle that was refused meanwhile is no longer asked for, so its refusal is not the last outcome.
    """
    good = state.known_good
    if good is None or good.digest != offer.digest:
        return state
    outcome = state.outcome
    if outcome is not None and outcome.error == OLDER and outcome.deployment != offer.digest:
        state = replace(state, failed=None, outcome=_outcome(offer, "succeeded", good.since))
    return replace(state, kept=offer)


def _note_repeated_offer(state: UpdateRecord, offer: Deployment) -> UpdateRecord:
    """Store the newest offer of the bundle that is being deployed."""
    if state.offered is not None and state.offered.digest == offer.digest:
        return replace(state, offered=offer)
    if state.deployment is not None and state.deployment.digest == offer.digest:
        return replace(state, deployment=offer)
    return state


def _reset_attempts(state: UpdateRecord, at: float) -> UpdateRecord:
    """Reset the counters of attempts, for a new deployment that begins at `at`."""
    return replace(state, attempts=0, tried=0, fetched=0, interrupted=0, note="", waiting=None, begun=at)


def _dropped(state: UpdateRecord) -> UpdateRecord:
    return replace(state, ending="dropped")


def _end_deployment(state: UpdateRecord) -> UpdateRecord:
    return replace(
        _reset_attempts(state, 0.0), deployment=None, deadline=state.deadline if _only_watching(state) else None
    )


def _only_watching(state: UpdateRecord) -> bool:
    return state.watching and state.deployment is None


def _refuse_older(state: UpdateRecord, offer: Deployment, at: float) -> UpdateRecord:
    found, floor = f"release {offer.release}", f"release {state.release}"
    if state.highest:
        found, floor = f"{offer.version} ({found})", f"{state.highest} ({floor})"
    message = f"{found} is older than {floor}, which this device has committed"
    outcome = _outcome(offer, "refused", at, error=OLDER, message=message)
    return replace(state, failed=offer, outcome=outcome)


# --- failures


def fail(state: UpdateRecord, event: Failed, limits: Limits) -> UpdateRecord:
    """After a failed effect: another attempt if the failure may be temporary and the limits allow it."""
    attempts, tried = min(state.attempts + 1, 16), state.tried + event.costly
    state = replace(state, attempts=attempts, tried=tried, fetched=state.fetched + event.fetched)
    spent = _spent(state, event.at, limits) if event.passing else ""
    state = replace(state, waiting=_waiting(state, event))
    if event.passing and not spent:
        return replace(state, ending="retry", note=f"{event.error}: {event.message}")
    rolling_back = state.name is UpdateState.ROLLING_BACK
    result = "rolled-back" if rolling_back else "refused" if event.refused else "failed"
    message = f"{spent}; the last failure was {event.error}: {event.message}" if spent else event.message
    outcome = _outcome(
        state.deployment, result, event.at, error="BudgetError" if spent else event.error, message=message
    )
    return replace(_drop_running_offer(state), ending="failed", failed=state.deployment, outcome=outcome, note="")


def _waiting(state: UpdateRecord, event: Failed) -> Waiting | None:
    if not event.waiting or state.deployment is None:
        return None
    before, digest = state.waiting, state.deployment.digest
    again = before is not None and (before.reason, before.digest) == (event.waiting, digest)
    return before if again else Waiting(event.waiting, event.at, digest)


def _spent(state: UpdateRecord, at: float, limits: Limits) -> str:
    """Why the deployment may not be tried again; empty if it may."""
    if state.tried >= limits.deployment_attempts:
        return f"{state.tried} attempts failed"
    if not seconds_left(state, at, limits):
        return f"the deployment began {(at - state.begun) / 3600:.1f} h ago, its limit is {limits.deployment_hours:g} h"
    return ""


def seconds_left(state: UpdateRecord, at: float, limits: Limits) -> float:
    """Seconds until the deployment reaches its age limit, at wall clock `at`; 0.0 when it is reached."""
    return max(0.0, state.begun + limits.deployment_hours * 3600 - at) if state.begun else math.inf


def _drop_running_offer(state: UpdateRecord) -> UpdateRecord:
    """A bundle that failed for good is not fetched again by itself."""
    failed = state.deployment is not None and state.kept is not None and state.kept.digest == state.deployment.digest
    return replace(state, kept=None) if failed else state


def interrupt(state: UpdateRecord, event: Booted, case: str, limits: Limits, *, was: UpdateState) -> UpdateRecord:
    """After a stop of the device during test, probation or commit; the new bundle may have caused it."""
    # A comparison may take days, in which the power may fail without the bundle's fault.
    count = state.interrupted + (event.ended == "crash" if was is UpdateState.SHADOWING else event.ended != "order")
    state = replace(state, interrupted=count)
    message = f"the device stopped {count} times in {was.value}"
    if case == "often":
        return fail(state, Failed(error="Interrupted", message=message, refused=True, at=event.at), limits)
    if was in (UpdateState.TESTING, UpdateState.SHADOWING, UpdateState.COMMITTING):
        return state
    return fail(state, Failed(error="Interrupted", message=message, passing=True, costly=True, at=event.at), limits)


def crash(state: UpdateRecord, event: Booted, case: str, *, was: UpdateState) -> UpdateRecord:
    """After the process crashed with a committed bundle."""
    if case != "looping":
        return replace(state, crashes=state.crashes + (state.watching or was is UpdateState.ROLLING_BACK))
    bad = state.known_good
    assert bad is not None  # only a loaded bundle is counted as looping
    good = None if was is UpdateState.ROLLING_BACK else state.previous
    message = f"the process ended {state.crashes + 1} times with {bad.version} loaded, soon after it was committed"
    outcome = Outcome(bad.digest, bad.version, "rolled-back", error="CrashLoop", message=message, at=event.at)
    failed = state.kept or state.failed
    state = replace(state, known_good=good, active=good, previous=None, kept=None, crashes=0, watching=False)
    # The deployment of a newer bundle continues; the bundle that crashed is not fetched again.
    ending = "retry" if state.deployment is not None and was is not UpdateState.CLEANING else "failed"
    return replace(state, failed=failed, outcome=outcome, ending=ending, note="")


def damage(state: UpdateRecord, event: Damaged, case: str, *, was: UpdateState) -> UpdateRecord:
    """After a slot was found damaged: choose the bundle that answers instead, and the one to fetch again."""
    note = f"{event.error}: {event.message}"
    again = replace(_reset_attempts(state, event.at), note=note, probing=False)
    if case == "alone":
        return replace(again, deployment=state.kept, deadline=None)
    good = state.known_good
    if good is not None and good.digest == event.digest:
        good = state.previous if event.fallback and was is not UpdateState.ROLLING_BACK else None
        again = replace(again, previous=None, watching=False, crashes=0)
    again = replace(again, known_good=good, active=state.active if event.answering else None)
    if was is UpdateState.ROLLING_BACK and state.ending == "failed":
        return again  # IDLE decides what is fetched
    return replace(
        again,
        deployment=state.kept if was in (UpdateState.IDLE, UpdateState.CLEANING) else state.deployment,
        ending="retry",
    )


# --- the end


def commit(state: UpdateRecord, event: Committed) -> UpdateRecord:
    """After the pointer names the new bundle as known-good."""
    assert state.active is not None  # COMMITTING is entered with it
    assert state.deployment is not None
    outcome = _outcome(state.deployment, "succeeded", event.at)
    highest, release = state.active.version, state.active.release
    if not state.deployment.downgrade and is_older(highest, release, than=state.highest, than_release=state.release):
        highest, release = state.highest, state.release
    previous = state.known_good if state.known_good is not None and state.known_good.slot != state.active.slot else None
    state = replace(state, known_good=state.active, previous=previous, kept=state.deployment)
    state = replace(state, release=release, highest=highest)
    state = replace(state, failed=None, note="", probing=False, watching=True, crashes=0)
    return replace(state, outcome=outcome, ending="succeeded")


def leave_cleaning(state: UpdateRecord, event: UpdateEvent, case: str) -> UpdateRecord:
    """After cleaning: rest, wait for another attempt, or begin with the offer that came meanwhile."""
    offered = state.offered
    rested = replace(state, name=UpdateState.IDLE, offered=None, ending="")
    if case == "offered":
        return replace(_reset_attempts(rested, event.at), name=UpdateState.RESOLVING, deployment=offered)
    if offered is None and state.ending == "retry":
        return rested
    rested = _end_deployment(replace(rested, deployment=None))
    if offered is not None and idle_offer_case(state, offered) == "older":
        rested = _refuse_older(rested, offered, event.at)
    lost = rested.kept is not None and (rested.known_good is None or rested.known_good.digest != rested.kept.digest)
    return replace(_reset_attempts(rested, event.at), deployment=rested.kept) if lost else rested


def installed(state: UpdateRecord, at: float) -> Installed:
    """The installed bundle that the inactive slot becomes when it is activated."""
    deployment = state.deployment
    assert deployment is not None  # every state that activates has one
    return Installed(state.inactive_slot, deployment.digest, deployment.version, deployment.release, at)


def _outcome(deployment: Deployment | None, result: str, at: float, *, error: str = "", message: str = "") -> Outcome:
    assert deployment is not None  # only a deployment can end
    return Outcome(deployment.digest, deployment.version, result, error=error, message=message, at=at)
