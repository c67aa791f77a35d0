"""What each event makes of an update's state. Pure; `machine` says which event leads to which state."""

from __future__ import annotations

import math

import msgspec

from device_agents.deployment import (
    Booted,
    Committed,
    Damaged,
    Deployment,
    Event,
    Failed,
    Installed,
    Limits,
    Offered,
    S,
    State,
)
from edgekit.mqtt.messages import Outcome


def replace(state: State, **changes: object) -> State:
    """The state with some fields changed."""
    return msgspec.structs.replace(state, **changes)


# --- offers


def offer_case(state: State, offer: Deployment) -> str:
    """``wanted``, ``unchanged`` or, at rest, ``older``."""
    if state.name is S.IDLE:
        return idle_offer_case(state, offer)
    heading = state.offered or (None if state.ending in ("failed", "dropped") else state.deployment)
    if heading is not None and heading.digest == offer.digest:
        return "unchanged"
    return "unchanged" if heading is None and _settled(state, offer) else "wanted"


def idle_offer_case(state: State, offer: Deployment) -> str:
    """As `offer_case`, at rest."""
    if _settled(state, offer):
        return "unchanged"
    return "older" if offer.release < state.release and not offer.downgrade else "wanted"


def offer(state: State, event: Offered, case: str, *, was: S, before: bool) -> State:
    """After an offer that came in state `was`; `before` says that the active slot was not touched yet."""
    offer = event.deployment
    if was is S.IDLE and case == "wanted":
        again = state.deployment is not None and state.deployment.digest == offer.digest
        state = state if again else _fresh(state, event.at)
        return replace(state, deployment=offer, ending="", note="")
    if was is S.IDLE:
        state = _at_rest(_keep(state, offer))
        return _refuse_older(state, offer, event.at) if case == "older" else state
    if case == "unchanged":
        return _asked_again(state, offer)
    return replace(state, offered=offer, ending="dropped" if before else state.ending)


def cancel(state: State, *, was: S, before: bool) -> State:
    """After the assignment named no bundle for this model any more."""
    if was is S.IDLE:
        return _at_rest(state)
    dropped = before or state.ending == "retry"
    return replace(state, offered=None, ending="dropped" if dropped else state.ending)


def _settled(state: State, offer: Deployment) -> bool:
    """True when `offer` runs already and is whole, or failed for good under the same assignment."""
    mended = state.name is S.IDLE and state.deployment is not None and state.deployment.digest == offer.digest
    runs = state.known_good is not None and state.known_good.digest == offer.digest and not mended
    failed = state.failed
    return runs or (failed is not None and (failed.digest, failed.assignment) == (offer.digest, offer.assignment))


def _keep(state: State, offer: Deployment) -> State:
    """Remember the newest order for what runs: with it, it can be fetched again."""
    runs = state.known_good is not None and state.known_good.digest == offer.digest
    return replace(state, kept=offer) if runs else state


def _asked_again(state: State, offer: Deployment) -> State:
    """Remember the newest assignment that asked for what is under way."""
    if state.offered is not None and state.offered.digest == offer.digest:
        return replace(state, offered=offer)
    if state.deployment is not None and state.deployment.digest == offer.digest:
        return replace(state, deployment=offer)
    return state


def _fresh(state: State, at: float) -> State:
    """Nothing was tried yet of what comes next."""
    return replace(state, attempts=0, tried=0, fetched=0, interrupted=0, note="", begun=at)


def _at_rest(state: State) -> State:
    return replace(_fresh(state, 0.0), deployment=None, deadline=state.deadline if _only_watching(state) else None)


def _only_watching(state: State) -> bool:
    return state.watching and state.deployment is None


def _refuse_older(state: State, offer: Deployment, at: float) -> State:
    message = f"release {offer.release} is older than release {state.release}, which this device has committed"
    outcome = _outcome(offer, "refused", at, error="DowngradeError", message=message)
    return replace(state, failed=offer, outcome=outcome)


# --- failures


def fail(state: State, event: Failed, limits: Limits) -> State:
    """After an effect failed: another attempt where the failure may pass and the budget allows one."""
    attempts, tried = min(state.attempts + 1, 16), state.tried + event.costly
    state = replace(state, attempts=attempts, tried=tried, fetched=state.fetched + event.fetched)
    spent = _spent(state, event.at, limits) if event.passing else ""
    if event.passing and not spent:
        return replace(state, ending="retry", note=f"{event.error}: {event.message}")
    rolled = state.name is S.ROLLING_BACK
    result = "rolled-back" if rolled else "refused" if event.refused else "failed"
    message = f"{spent}; the last failure was {event.error}: {event.message}" if spent else event.message
    outcome = _outcome(
        state.deployment, result, event.at, error="BudgetError" if spent else event.error, message=message
    )
    return replace(_forget(state), ending="failed", failed=state.deployment, outcome=outcome, note="")


def _spent(state: State, at: float, limits: Limits) -> str:
    """Why the deployment may not be tried again; empty while it may."""
    if state.tried >= limits.max_attempts:
        return f"{state.tried} attempts failed"
    if not seconds_left(state, at, limits):
        return f"it was asked for {(at - state.begun) / 3600:.1f} h ago, and has {limits.total_seconds / 3600:g} h"
    return ""


def seconds_left(state: State, at: float, limits: Limits) -> float:
    """Of the time that a deployment has, at wall clock `at`; 0.0 when it is over."""
    return max(0.0, state.begun + limits.total_seconds - at) if state.begun else math.inf


def _forget(state: State) -> State:
    """What fails for good is not fetched again by itself."""
    failed = state.deployment is not None and state.kept is not None and state.kept.digest == state.deployment.digest
    return replace(state, kept=None) if failed else state


def interrupt(state: State, event: Booted, case: str, limits: Limits, *, was: S) -> State:
    """After a stop of the device while the bundle was tested, proved or committed, which it may have caused itself."""
    count = state.interrupted + (event.ended != "order")
    state = replace(state, interrupted=count)
    message = f"the device stopped {count} times in {was.value}"
    if case == "often":
        return fail(state, Failed(error="Interrupted", message=message, refused=True, at=event.at), limits)
    if was in (S.TESTING, S.COMMITTING):
        return state
    return fail(state, Failed(error="Interrupted", message=message, passing=True, costly=True, at=event.at), limits)


def crash(state: State, event: Booted, case: str, *, was: S) -> State:
    """After the process died under what had been committed before."""
    if case != "looping":
        return replace(state, crashes=state.crashes + (state.watching or was is S.ROLLING_BACK))
    bad = state.known_good
    assert bad is not None  # else nothing could have been loaded
    good = None if was is S.ROLLING_BACK else state.previous
    message = f"the process ended {state.crashes + 1} times with {bad.version} loaded, soon after it was committed"
    outcome = Outcome(bad.digest, bad.version, "rolled-back", error="CrashLoop", message=message, at=event.at)
    failed = state.kept or state.failed
    state = replace(state, known_good=good, active=good, previous=None, kept=None, crashes=0, watching=False)
    # A newer bundle that was on its way goes on; the one that was is not fetched again.
    ending = "retry" if state.deployment is not None and was is not S.CLEANING else "failed"
    return replace(state, failed=failed, outcome=outcome, ending=ending, note="")


def damage(state: State, event: Damaged, case: str, *, was: S) -> State:
    """After a slot was found damaged: what answers instead, and what is fetched again."""
    note = f"{event.error}: {event.message}"
    again = replace(_fresh(state, event.at), note=note, probing=False)
    if case == "alone":
        return replace(again, deployment=state.kept, deadline=None)
    good = state.known_good
    if good is not None and good.digest == event.digest:
        good = state.previous if event.fallback and was is not S.ROLLING_BACK else None
        again = replace(again, previous=None, watching=False, crashes=0)
    again = replace(again, known_good=good, active=state.active if event.answering else None)
    if was is S.ROLLING_BACK and state.ending == "failed":
        return again  # what is fetched is decided at rest
    return replace(again, deployment=state.kept if was in (S.IDLE, S.CLEANING) else state.deployment, ending="retry")


# --- the end


def commit(state: State, event: Committed) -> State:
    """After the pointer named the new bundle as known to be good."""
    assert state.active is not None  # COMMITTING is entered with it
    assert state.deployment is not None
    outcome = _outcome(state.deployment, "succeeded", event.at)
    release = state.active.release if state.deployment.downgrade else max(state.release, state.active.release)
    previous = state.known_good if state.known_good is not None and state.known_good.slot != state.active.slot else None
    state = replace(state, known_good=state.active, previous=previous, kept=state.deployment, release=release)
    state = replace(state, failed=None, note="", probing=False, watching=True, crashes=0)
    return replace(state, outcome=outcome, ending="succeeded")


def leave_cleaning(state: State, event: Event, case: str) -> State:
    """To rest, to another attempt, or to what was asked for meanwhile."""
    offered = state.offered
    rested = replace(state, name=S.IDLE, offered=None, ending="")
    if case == "offered":
        return replace(_fresh(rested, event.at), name=S.RESOLVING, deployment=offered)
    if offered is None and state.ending == "retry":
        return rested
    rested = _at_rest(replace(rested, deployment=None))
    if offered is not None and idle_offer_case(state, offered) == "older":
        rested = _refuse_older(rested, offered, event.at)
    lost = rested.kept is not None and (rested.known_good is None or rested.known_good.digest != rested.kept.digest)
    return replace(_fresh(rested, event.at), deployment=rested.kept) if lost else rested


def installed(state: State, at: float) -> Installed:
    """What the inactive slot holds once it is live."""
    deployment = state.deployment
    assert deployment is not None  # every state that activates has one
    return Installed(state.inactive_slot, deployment.digest, deployment.version, deployment.release, at)


def _outcome(deployment: Deployment | None, result: str, at: float, *, error: str = "", message: str = "") -> Outcome:
    assert deployment is not None  # only a deployment can end
    return Outcome(deployment.digest, deployment.version, result, error=error, message=message, at=at)
