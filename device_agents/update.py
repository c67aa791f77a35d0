"""UpdateMachine: how one model of a device gets from one bundle to the next. One table; no I/O, no clock.

The shell journals the state that `step` returns, runs its effects in order, feeds each outcome back as one event, and
feeds DeadlinePassed at `wake_at`. Every effect is safe to repeat. `now` is in monotonic seconds and serves deadlines
only; `at` in events is wall clock and serves reports only.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from device_agents.deployment import (
    Activated,
    Booted,
    Cancelled,
    Cleaned,
    Committed,
    DeadlinePassed,
    Deployment,
    Do,
    Downloaded,
    Event,
    Failed,
    Installed,
    Limits,
    Offered,
    Proved,
    Resolved,
    RolledBack,
    S,
    Staged,
    State,
    Tested,
    Verified,
    Watched,
)
from edgekit.messages import Outcome


class Row(NamedTuple):
    """One transition: in `state`, on `event` in the case `when` (``""``: always), go to `then` and run `effects`."""

    state: S
    event: type[Event]
    when: str
    then: S
    effects: tuple[Do, ...] = ()


_BEFORE = (S.RESOLVING, S.DOWNLOADING, S.VERIFYING, S.STAGING, S.TESTING)  # the active slot is untouched
_AFTER = (S.ACTIVATING, S.PROBATION, S.COMMITTING)
_LATER = (*_AFTER, S.ROLLING_BACK, S.CLEANING)
_CLEANED = (Cleaned, Failed, DeadlinePassed)

# fmt: off
TABLE: tuple[Row, ...] = (
    #   state           event           when         next state      effects
    Row(S.IDLE,         Offered,        "wanted",    S.RESOLVING,    (Do.RESOLVE,)),
    Row(S.IDLE,         Offered,        "older",     S.IDLE),
    Row(S.IDLE,         Offered,        "unchanged", S.IDLE),
    Row(S.IDLE,         Cancelled,      "",          S.IDLE),
    Row(S.IDLE,         DeadlinePassed, "retry",     S.RESOLVING,    (Do.RESOLVE,)),
    Row(S.RESOLVING,    Resolved,       "",          S.DOWNLOADING,  (Do.DOWNLOAD,)),
    Row(S.DOWNLOADING,  Downloaded,     "",          S.VERIFYING,    (Do.VERIFY,)),
    Row(S.VERIFYING,    Verified,       "",          S.STAGING,      (Do.STAGE,)),
    Row(S.STAGING,      Staged,         "",          S.TESTING,      (Do.TEST,)),
    Row(S.TESTING,      Tested,         "",          S.ACTIVATING,   (Do.ACTIVATE,)),
    Row(S.ACTIVATING,   Activated,      "",          S.PROBATION,    (Do.WATCH,)),
    Row(S.PROBATION,    Watched,        "",          S.PROBATION,    (Do.PROBE,)),
    Row(S.PROBATION,    DeadlinePassed, "watched",   S.PROBATION,    (Do.PROBE,)),
    Row(S.PROBATION,    DeadlinePassed, "late",      S.ROLLING_BACK, (Do.ROLL_BACK,)),
    Row(S.PROBATION,    Proved,         "",          S.COMMITTING,   (Do.COMMIT,)),
    Row(S.COMMITTING,   Committed,      "",          S.CLEANING,     (Do.CLEAN,)),
    Row(S.ROLLING_BACK, RolledBack,     "",          S.CLEANING,     (Do.CLEAN,)),
    Row(S.ROLLING_BACK, Failed,         "",          S.ROLLING_BACK),  # tried again at the deadline, for ever
    Row(S.ROLLING_BACK, DeadlinePassed, "",          S.ROLLING_BACK, (Do.ROLL_BACK,)),
    # Before ACTIVATING a failure leaves the active slot as it was; from ACTIVATING on it returns to known-good.
    *(Row(s,            Failed,         "",          S.CLEANING,     (Do.CLEAN,)) for s in _BEFORE),
    *(Row(s,            DeadlinePassed, "",          S.CLEANING,     (Do.CLEAN,)) for s in _BEFORE),
    *(Row(s,            Failed,         "",          S.ROLLING_BACK, (Do.ROLL_BACK,)) for s in _AFTER),
    *(Row(s,            DeadlinePassed, "",          S.ROLLING_BACK, (Do.ROLL_BACK,))
      for s in (S.ACTIVATING, S.COMMITTING)),
    # What outsiders may ask at any time: a newer offer supersedes a transfer and waits for anything later.
    *(Row(s,            Offered,        "unchanged", s) for s in (*_BEFORE, *_LATER)),
    *(Row(s,            Offered,        "wanted",    S.CLEANING,     (Do.CLEAN,)) for s in _BEFORE),
    *(Row(s,            Offered,        "wanted",    s) for s in _LATER),
    *(Row(s,            Cancelled,      "",          S.CLEANING,     (Do.CLEAN,)) for s in _BEFORE),
    *(Row(s,            Cancelled,      "",          s) for s in _LATER),
    # Cleaning that fails leaves litter that the next staging removes; it must not block the model.
    *(Row(S.CLEANING,   e,              "offered",   S.RESOLVING,    (Do.RESOLVE,)) for e in _CLEANED),
    *(Row(S.CLEANING,   e,              "",          S.IDLE) for e in _CLEANED),
)

BOOT_TABLE: tuple[Row, ...] = (
    #   state           event   when      resumes in      effects
    Row(S.IDLE,         Booted, "",       S.IDLE),
    Row(S.RESOLVING,    Booted, "",       S.RESOLVING,    (Do.RESOLVE,)),
    Row(S.DOWNLOADING,  Booted, "",       S.DOWNLOADING,  (Do.DOWNLOAD,)),
    Row(S.VERIFYING,    Booted, "",       S.DOWNLOADING,  (Do.DOWNLOAD,)),  # the cut may have torn a block
    Row(S.STAGING,      Booted, "",       S.STAGING,      (Do.STAGE,)),
    Row(S.TESTING,      Booted, "",       S.TESTING,      (Do.TEST,)),
    Row(S.TESTING,      Booted, "often",  S.CLEANING,     (Do.CLEAN,)),  # the test itself may be what ends the process
    Row(S.ACTIVATING,   Booted, "",       S.ROLLING_BACK, (Do.ROLL_BACK,)),
    Row(S.ACTIVATING,   Booted, "often",  S.ROLLING_BACK, (Do.ROLL_BACK,)),
    Row(S.PROBATION,    Booted, "",       S.ROLLING_BACK, (Do.ROLL_BACK,)),
    Row(S.PROBATION,    Booted, "often",  S.ROLLING_BACK, (Do.ROLL_BACK,)),
    Row(S.COMMITTING,   Booted, "",       S.COMMITTING,   (Do.COMMIT,)),
    Row(S.ROLLING_BACK, Booted, "",       S.ROLLING_BACK, (Do.ROLL_BACK,)),
    Row(S.CLEANING,     Booted, "",       S.CLEANING,     (Do.CLEAN,)),
)
# fmt: on

_INDEX = {(row.state, row.event, row.when): row for row in (*TABLE, *BOOT_TABLE)}


class Step(NamedTuple):
    """What follows from one event: the new state, effects to run in order, and when to send DeadlinePassed."""

    state: State
    effects: tuple[Do, ...]
    wake_at: float | None


class InvalidTransition(Exception):  # noqa: N818  the field's word; it always means a bug in the shell
    """The table holds no row for this event in this state; nothing has changed."""


class UpdateMachine:
    """The machine of one model: holds nothing but its table and limits.

    Args:
        limits: Times and counts.
        table: Rows by (state, event, case); given otherwise only by a test that wants to see a wrong row caught.
    """

    def __init__(self, limits: Limits, *, table: dict[tuple[S, type[Event], str], Row] | None = None) -> None:
        self._limits = limits
        self._table = _INDEX if table is None else table

    def step(self, state: State, event: Event, now: float) -> Step:
        """Return what follows from `event`; `now` is monotonic seconds.

        Raises:
            InvalidTransition: the table has no row for it.
        """
        case = self._case(state, event)
        row = self._table.get((state.name, type(event), case))
        if row is None:
            raise InvalidTransition(f"{type(event).__name__} ({case or 'always'}) in {state.name.value}")
        after = self._apply(state, event, case, row)
        # PROBATION's second stretch is the probe itself, which has the time of a step.
        if row.effects or row.then is not state.name or isinstance(event, Booted | Failed):
            after = msgspec.structs.replace(after, deadline=self._deadline(after, row, now))
        return Step(after, row.effects, after.deadline)

    def _case(self, state: State, event: Event) -> str:
        """Which of a row's cases holds."""
        if isinstance(event, Offered):
            return _offer_case(state, event.deployment)
        if isinstance(event, DeadlinePassed) and state.name is S.IDLE:
            return "retry" if state.deployment is not None else ""
        if isinstance(event, DeadlinePassed) and state.name is S.PROBATION:
            return "late" if state.probing else "watched"
        if state.name is S.CLEANING and isinstance(event, Cleaned | Failed | DeadlinePassed):
            fresh = state.offered is not None and _idle_offer_case(state, state.offered) == "wanted"
            return "offered" if fresh else ""
        if isinstance(event, Booted) and state.name in (S.TESTING, S.ACTIVATING, S.PROBATION):
            return "often" if state.interrupted + 1 >= self._limits.max_interruptions else ""
        return ""

    def _apply(self, state: State, event: Event, case: str, row: Row) -> State:
        """The new state but for its deadline."""
        if state.name is S.CLEANING and row.then is not S.CLEANING:
            return _leave_cleaning(state, event, case)
        changed = _replace(state, name=row.then)
        if isinstance(event, Offered):
            return _offer(changed, event, case, was=state.name)
        if isinstance(event, Cancelled):
            return _cancel(changed, was=state.name)
        if isinstance(event, Failed) and state.name is not S.ROLLING_BACK:
            return _fail(changed, event)
        if isinstance(event, DeadlinePassed) and row.then in (S.CLEANING, S.ROLLING_BACK):
            message = f"{state.name.value} took longer than {self._limits.step_seconds:g} s"
            passing = state.name in (S.RESOLVING, S.DOWNLOADING)
            late = Failed(error="DeadlinePassed", message=message, passing=passing, at=event.at)
            return changed if state.name is S.ROLLING_BACK else _fail(changed, late)
        if isinstance(event, DeadlinePassed | Watched) and state.name is S.PROBATION:
            return _replace(changed, probing=True)
        if isinstance(event, Booted) and row.then is S.ROLLING_BACK:
            changed = _replace(changed, active=state.known_good)  # of what ran before nothing does
        if isinstance(event, Booted) and state.name in (S.TESTING, S.ACTIVATING, S.PROBATION):
            return _interrupt(changed, event, case, was=state.name)
        if isinstance(event, Activated):
            return _replace(changed, active=_installed(state, event.at), probing=False)
        if isinstance(event, Committed):
            return _commit(changed, event)
        if isinstance(event, RolledBack):
            return _replace(changed, active=state.known_good)
        return changed

    def _deadline(self, state: State, row: Row, now: float) -> float | None:
        """When the state that was entered, or its effect, takes too long."""
        if state.name is S.IDLE:
            if state.deployment is None:
                return None
            return now if row.event is Booted else now + self._retry_delay(state.attempts)
        if row.effects == (Do.WATCH,):
            return now + self._limits.probation_seconds
        if state.name is S.ROLLING_BACK and not row.effects:
            return now + self._limits.retry_seconds
        return now + self._limits.step_seconds

    def _retry_delay(self, attempts: int) -> float:
        exponent = min(max(attempts - 1, 0), 16)
        return min(self._limits.max_retry_seconds, self._limits.retry_seconds * 2.0**exponent)


def _offer_case(state: State, offer: Deployment) -> str:
    if state.name is S.IDLE:
        return _idle_offer_case(state, offer)
    heading = state.offered or (None if state.ending in ("failed", "dropped") else state.deployment)
    if heading is not None and heading.digest == offer.digest:
        return "unchanged"
    return "unchanged" if heading is None and _settled(state, offer) else "wanted"


def _idle_offer_case(state: State, offer: Deployment) -> str:
    if _settled(state, offer):
        return "unchanged"
    return "older" if offer.release < state.release else "wanted"


def _settled(state: State, offer: Deployment) -> bool:
    """True when `offer` runs already, or failed for good under the same assignment."""
    runs = state.known_good is not None and state.known_good.digest == offer.digest
    failed = state.failed
    return runs or (failed is not None and (failed.digest, failed.assignment) == (offer.digest, offer.assignment))


def _offer(state: State, event: Offered, case: str, *, was: S) -> State:
    offer = event.deployment
    if was is S.IDLE and case == "wanted":
        again = state.deployment is not None and state.deployment.digest == offer.digest
        state = state if again else _replace(state, attempts=0, fetched=0, interrupted=0)
        return _replace(state, deployment=offer, ending="", note="")
    if was is S.IDLE:
        state = _replace(state, deployment=None, attempts=0, fetched=0, interrupted=0, note="", deadline=None)
        return _refuse_older(state, offer, event.at) if case == "older" else state
    if case == "unchanged":
        return _asked_again(state, offer)
    return _replace(state, offered=offer, ending="dropped" if was in _BEFORE else state.ending)


def _asked_again(state: State, offer: Deployment) -> State:
    """Remember the newest assignment that asked for what is under way."""
    if state.offered is not None and state.offered.digest == offer.digest:
        return _replace(state, offered=offer)
    if state.deployment is not None and state.deployment.digest == offer.digest:
        return _replace(state, deployment=offer)
    return state


def _cancel(state: State, *, was: S) -> State:
    if was is S.IDLE:
        return _replace(state, deployment=None, attempts=0, fetched=0, interrupted=0, note="", deadline=None)
    dropped = was in _BEFORE or state.ending == "retry"
    return _replace(state, offered=None, ending="dropped" if dropped else state.ending)


def _fail(state: State, event: Failed) -> State:
    if event.passing:
        note = f"{event.error}: {event.message}"
        fetched = state.fetched + event.fetched
        return _replace(state, ending="retry", note=note, attempts=min(state.attempts + 1, 16), fetched=fetched)
    rolled = state.name is S.ROLLING_BACK
    result = "rolled-back" if rolled else "refused" if event.refused else "failed"
    outcome = _outcome(state.deployment, result, event.at, error=event.error, message=event.message)
    return _replace(state, ending="failed", failed=state.deployment, outcome=outcome, note="")


def _interrupt(state: State, event: Booted, case: str, *, was: S) -> State:
    """The device stopped while the bundle was tested or proved, which the bundle itself may have caused."""
    count = state.interrupted + 1
    state = _replace(state, interrupted=count)
    message = f"the device stopped {count} times in {was.value}"
    if case == "often":
        return _fail(state, Failed(error="Interrupted", message=message, refused=True, at=event.at))
    if was is S.TESTING:
        return state
    return _fail(state, Failed(error="Interrupted", message=message, passing=True, at=event.at))


def _commit(state: State, event: Committed) -> State:
    assert state.active is not None  # COMMITTING is entered with it
    outcome = _outcome(state.deployment, "succeeded", event.at)
    release = max(state.release, state.active.release)
    kept = _replace(state, known_good=state.active, release=release, failed=None, note="", probing=False)
    return _replace(kept, outcome=outcome, ending="succeeded")


def _leave_cleaning(state: State, event: Event, case: str) -> State:
    offer = state.offered
    rested = _replace(state, name=S.IDLE, offered=None, ending="")
    if case == "offered":
        return _replace(rested, name=S.RESOLVING, deployment=offer, attempts=0, fetched=0, interrupted=0, note="")
    if offer is None and state.ending == "retry":
        return rested
    rested = _replace(rested, deployment=None, attempts=0, fetched=0, interrupted=0, note="")
    if offer is not None and _idle_offer_case(state, offer) == "older":
        return _refuse_older(rested, offer, event.at)
    return rested


def _refuse_older(state: State, offer: Deployment, at: float) -> State:
    message = f"release {offer.release} is older than release {state.release}, which this device has committed"
    outcome = _outcome(offer, "refused", at, error="DowngradeError", message=message)
    return _replace(state, failed=offer, outcome=outcome)


def _installed(state: State, at: float) -> Installed:
    deployment = state.deployment
    assert deployment is not None  # every state but IDLE has one
    return Installed(state.inactive_slot, deployment.digest, deployment.version, deployment.release, at)


def _outcome(deployment: Deployment | None, result: str, at: float, *, error: str = "", message: str = "") -> Outcome:
    assert deployment is not None  # only a deployment can end
    return Outcome(deployment.digest, deployment.version, result, error=error, message=message, at=at)


def _replace(state: State, **changes: object) -> State:
    return msgspec.structs.replace(state, **changes)
