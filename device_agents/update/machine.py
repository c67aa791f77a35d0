"""UpdateMachine: the states of one model's update, as one transition table. No I/O, no clock.

`runner.Updater` journals the state that `step` returns, runs its effects in order, and passes each outcome back as one
event; at `wake_at` it passes DeadlinePassed. Every effect is safe to repeat. `now` is in monotonic seconds, for
deadlines only. `at` in events is in wall clock seconds, for reports and for the age of a deployment.
"""

from __future__ import annotations

import math
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
    Downloaded,
    Effect,
    Failed,
    Limits,
    Offered,
    Proved,
    Resolved,
    RolledBack,
    Shadowed,
    Staged,
    Tested,
    UpdateEvent,
    UpdateRecord,
    UpdateState,
    Verified,
    Watched,
)
from device_agents.update import transitions

IDLE, RESOLVING, DOWNLOADING = UpdateState.IDLE, UpdateState.RESOLVING, UpdateState.DOWNLOADING
VERIFYING, STAGING, TESTING = UpdateState.VERIFYING, UpdateState.STAGING, UpdateState.TESTING
SHADOWING = UpdateState.SHADOWING
ACTIVATING, PROBATION, COMMITTING = UpdateState.ACTIVATING, UpdateState.PROBATION, UpdateState.COMMITTING
ROLLING_BACK, CLEANING = UpdateState.ROLLING_BACK, UpdateState.CLEANING

PENDING = transitions.PENDING
CLOCKS_DIFFER_SECONDS = 1.0  # the two clocks may differ by this much; a deadline must not pass before the budget ends


class Row(NamedTuple):
    """A transition: in `state`, on `event`, in case `when` (empty: every case), go to `next_state`, run `effects`."""

    state: UpdateState
    event: type[UpdateEvent]
    when: str
    next_state: UpdateState
    effects: tuple[Effect, ...] = ()


_BEFORE = (RESOLVING, DOWNLOADING, VERIFYING, STAGING, TESTING, SHADOWING)  # the active slot is untouched
_AFTER = (ACTIVATING, PROBATION, COMMITTING)
_LATER = (*_AFTER, ROLLING_BACK, CLEANING)
_SUSPECT = (TESTING, SHADOWING, *_AFTER)  # a stop of the device in these states may be caused by the new bundle
_CLEANED = (Cleaned, Failed, DeadlinePassed)

# fmt: off
TABLE: tuple[Row, ...] = (
    #   state           event           when         next state      effects
    Row(IDLE,         Offered,        "wanted",    RESOLVING,    (Effect.RESOLVE,)),
    Row(IDLE,         Offered,        "older",     IDLE),
    Row(IDLE,         Offered,        "unchanged", IDLE),
    Row(IDLE,         Cancelled,      "",          IDLE),
    # The end of a deployment that waits for another attempt: its blocks, and the space that they have, are freed.
    Row(IDLE,         Offered,        "older, pending",     CLEANING, (Effect.CLEAN,)),
    Row(IDLE,         Offered,        "unchanged, pending", CLEANING, (Effect.CLEAN,)),
    Row(IDLE,         Cancelled,      "pending",            CLEANING, (Effect.CLEAN,)),
    Row(CLEANING,     Offered,        "pending",            CLEANING, (Effect.CLEAN,)),
    Row(CLEANING,     Cancelled,      "pending",            CLEANING, (Effect.CLEAN,)),
    Row(IDLE,         DeadlinePassed, "retry",     RESOLVING,    (Effect.RESOLVE,)),
    Row(IDLE,         DeadlinePassed, "stable",    IDLE),
    Row(RESOLVING,    Resolved,       "",          DOWNLOADING,  (Effect.DOWNLOAD,)),
    Row(DOWNLOADING,  Downloaded,     "",          VERIFYING,    (Effect.VERIFY,)),
    Row(VERIFYING,    Verified,       "",          STAGING,      (Effect.STAGE,)),
    Row(STAGING,      Staged,         "",          TESTING,      (Effect.TEST,)),
    Row(TESTING,      Tested,         "",          ACTIVATING,   (Effect.ACTIVATE,)),
    Row(TESTING,      Tested,         "shadow",    SHADOWING,    (Effect.SHADOW,)),
    Row(SHADOWING,    Shadowed,       "",          SHADOWING),  # until an assignment lets it be activated
    Row(SHADOWING,    Offered,        "released",  TESTING,      (Effect.TEST,)),  # it may have been staged for days
    Row(ACTIVATING,   Activated,      "",          PROBATION,    (Effect.WATCH,)),
    Row(PROBATION,    Watched,        "",          PROBATION,    (Effect.PROBE,)),
    Row(PROBATION,    DeadlinePassed, "watched",   PROBATION,    (Effect.PROBE,)),
    Row(PROBATION,    DeadlinePassed, "late",      ROLLING_BACK, (Effect.ROLL_BACK,)),
    Row(PROBATION,    Proved,         "",          COMMITTING,   (Effect.COMMIT,)),
    Row(COMMITTING,   Committed,      "",          CLEANING,     (Effect.CLEAN,)),
    Row(ROLLING_BACK, RolledBack,     "",          CLEANING,     (Effect.CLEAN,)),
    Row(ROLLING_BACK, Failed,         "",          ROLLING_BACK),  # retried at the deadline, without limit
    Row(ROLLING_BACK, DeadlinePassed, "",          ROLLING_BACK, (Effect.ROLL_BACK,)),
    # Before ACTIVATING a failure leaves the active slot as it was; from ACTIVATING on it returns to known-good.
    *(Row(s,            Failed,         "",          CLEANING,     (Effect.CLEAN,)) for s in _BEFORE),
    *(Row(s,            DeadlinePassed, "",          CLEANING,     (Effect.CLEAN,)) for s in _BEFORE),
    *(Row(s,            Failed,         "",          ROLLING_BACK, (Effect.ROLL_BACK,)) for s in _AFTER),
    *(Row(s,            DeadlinePassed, "",          ROLLING_BACK, (Effect.ROLL_BACK,))
      for s in (ACTIVATING, COMMITTING)),
    # A damaged bundle stops answering. The previous one answers if it is whole, and the damaged one is fetched again.
    *(Row(s,            Damaged,        "",          ROLLING_BACK, (Effect.ROLL_BACK,)) for s in UpdateState),
    Row(IDLE,         Damaged,        "alone",     IDLE),  # the loaded model still gives right answers
    # Offers and cancels come at any time: a newer offer replaces a transfer, and waits for any later state.
    *(Row(s,            Offered,        "unchanged", s) for s in (*_BEFORE, *_LATER)),
    *(Row(s,            Offered,        "wanted",    CLEANING,     (Effect.CLEAN,)) for s in _BEFORE),
    *(Row(s,            Offered,        "wanted",    s) for s in _LATER),
    *(Row(s,            Cancelled,      "",          CLEANING,     (Effect.CLEAN,)) for s in _BEFORE),
    *(Row(s,            Cancelled,      "",          s) for s in _LATER),
    # A failed cleaning leaves files that the next staging removes; it must not block the model.
    *(Row(CLEANING,   e,              "offered",   RESOLVING,    (Effect.RESOLVE,)) for e in _CLEANED),
    *(Row(CLEANING,   e,              "",          IDLE) for e in _CLEANED),
)

BOOT_TABLE: tuple[Row, ...] = (
    #   state           event   when      resumes in      effects
    Row(IDLE,         Booted, "",       IDLE),
    Row(RESOLVING,    Booted, "",       RESOLVING,    (Effect.RESOLVE,)),
    Row(DOWNLOADING,  Booted, "",       DOWNLOADING,  (Effect.DOWNLOAD,)),
    Row(VERIFYING,    Booted, "",       DOWNLOADING,  (Effect.DOWNLOAD,)),  # a power cut may have torn a block
    Row(STAGING,      Booted, "",       STAGING,      (Effect.STAGE,)),
    Row(TESTING,      Booted, "",       TESTING,      (Effect.TEST,)),
    Row(TESTING,      Booted, "often",  CLEANING,     (Effect.CLEAN,)),  # the test itself may crash the process
    Row(SHADOWING,    Booted, "",       SHADOWING,    (Effect.SHADOW,)),
    Row(SHADOWING,    Booted, "often",  CLEANING,     (Effect.CLEAN,)),
    Row(ACTIVATING,   Booted, "",       ROLLING_BACK, (Effect.ROLL_BACK,)),
    Row(ACTIVATING,   Booted, "often",  ROLLING_BACK, (Effect.ROLL_BACK,)),
    Row(PROBATION,    Booted, "",       ROLLING_BACK, (Effect.ROLL_BACK,)),
    Row(PROBATION,    Booted, "often",  ROLLING_BACK, (Effect.ROLL_BACK,)),
    Row(COMMITTING,   Booted, "",       COMMITTING,   (Effect.COMMIT,)),
    Row(COMMITTING,   Booted, "often",  ROLLING_BACK, (Effect.ROLL_BACK,)),
    Row(ROLLING_BACK, Booted, "",       ROLLING_BACK, (Effect.ROLL_BACK,)),
    Row(CLEANING,     Booted, "",       CLEANING,     (Effect.CLEAN,)),
    # A committed bundle that crashes the process again and again is not loaded again.
    *(Row(s,            Booted, "looping", ROLLING_BACK, (Effect.ROLL_BACK,))
      for s in UpdateState if s not in _SUSPECT),
)
# fmt: on

_INDEX = {(row.state, row.event, row.when): row for row in (*TABLE, *BOOT_TABLE)}


class UpdateStep(NamedTuple):
    """Result of one event: the new state, the effects to run in order, and when to send DeadlinePassed."""

    state: UpdateRecord
    effects: tuple[Effect, ...]
    wake_at: float | None


class InvalidTransition(Exception):  # noqa: N818  the usual word; it always means a bug in the caller
    """The table has no row for this event in this state; nothing has changed."""


class UpdateMachine:
    """The machine of one model. It has no state of its own, only its table and limits.

    Args:
        limits: Times and counts.
        table: Rows by (state, event, case); None for TABLE and BOOT_TABLE. Tests pass other rows.
    """

    def __init__(
        self, limits: Limits, *, table: dict[tuple[UpdateState, type[UpdateEvent], str], Row] | None = None
    ) -> None:
        self._limits = limits
        self._table = _INDEX if table is None else table

    def step(self, state: UpdateRecord, event: UpdateEvent, now: float) -> UpdateStep:
        """The result of `event` in `state`; `now` is monotonic seconds.

        Raises:
            InvalidTransition: the table has no row for the event in this state.
        """
        case = self._case(state, event)
        row = self._table.get((state.name, type(event), case))
        if row is None:
            raise InvalidTransition(f"{type(event).__name__} ({case or 'always'}) in {state.name.value}")
        after = self._apply(state, event, case, row)
        # The second part of PROBATION is the probe, which has the time limit of a step.
        if row.effects or row.next_state is not state.name or isinstance(event, Booted | Failed):
            after = msgspec.structs.replace(after, deadline=self._deadline(after, row, now, event.at))
        elif after.name is IDLE and after.deadline is None:
            after = msgspec.structs.replace(after, deadline=self._idle_deadline(after, row, now))
        return UpdateStep(after, row.effects, after.deadline)

    def _case(self, state: UpdateRecord, event: UpdateEvent) -> str:
        """The case of an event in a state, for the look-up of its row."""
        if isinstance(event, Offered):
            return transitions.offer_case(state, event.deployment)
        if isinstance(event, Tested):
            return "shadow" if state.deployment is not None and state.deployment.shadow else ""
        if isinstance(event, Cancelled):
            return PENDING if transitions.is_pending(state) else ""
        if isinstance(event, DeadlinePassed) and state.name is IDLE:
            return "retry" if state.deployment is not None else "stable" if state.watching else ""
        if isinstance(event, DeadlinePassed) and state.name is PROBATION:
            return "late" if state.probing else "watched"
        if state.name is CLEANING and isinstance(event, Cleaned | Failed | DeadlinePassed):
            fresh = state.offered is not None and transitions.idle_offer_case(state, state.offered) == "wanted"
            return "offered" if fresh else ""
        if isinstance(event, Damaged) and state.name is IDLE:
            return "alone" if event.answering and not event.fallback else ""
        return self._boot_case(state, event) if isinstance(event, Booted) else ""

    def _boot_case(self, state: UpdateRecord, event: Booted) -> str:
        """``often`` or ``looping`` when the tested or committed bundle stops the device again and again; else empty."""
        if state.name in _SUSPECT:
            counts = event.ended == "crash" if state.name is SHADOWING else event.ended != "order"
            often = counts and state.interrupted + 1 >= self._limits.max_interruptions
            return "often" if often else ""
        counts = event.ended == "crash" and (state.watching or state.name is ROLLING_BACK)
        loops = counts and state.known_good is not None and state.crashes + 1 >= self._limits.max_crashes
        return "looping" if loops else ""

    def _apply(self, state: UpdateRecord, event: UpdateEvent, case: str, row: Row) -> UpdateRecord:
        """The new state without its deadline."""
        if state.name is CLEANING and row.next_state in (IDLE, RESOLVING):
            return transitions.leave_cleaning(state, event, case)
        changed = transitions.replace(state, name=row.next_state)
        if row.next_state is STAGING:
            changed = transitions.replace(changed, previous=None)  # its slot is overwritten
        if isinstance(event, Booted):
            return self._boot(changed, event, case, row, was=state.name)
        if isinstance(event, Damaged):
            return transitions.damage(changed, event, case, was=state.name)
        if isinstance(event, Offered):
            return transitions.offer(changed, event, case, was=state.name, before=state.name in _BEFORE)
        if isinstance(event, Cancelled):
            return transitions.cancel(changed, case, was=state.name, before=state.name in _BEFORE)
        if isinstance(event, Failed) and state.name is not ROLLING_BACK:
            return transitions.fail(changed, event, self._limits)
        if isinstance(event, DeadlinePassed):
            return self._pass_deadline(state, changed, event, case, row)
        if isinstance(event, Resolved):
            return transitions.replace(changed, waiting=None)
        if isinstance(event, Watched):
            return transitions.replace(changed, probing=True)
        if isinstance(event, Activated):
            return transitions.replace(changed, active=transitions.installed(state, event.at), probing=False)
        if isinstance(event, Committed):
            return transitions.commit(changed, event)
        if isinstance(event, RolledBack):
            return transitions.replace(changed, active=state.known_good)
        return changed

    def _boot(self, changed: UpdateRecord, event: Booted, case: str, row: Row, *, was: UpdateState) -> UpdateRecord:
        if row.next_state is ROLLING_BACK:
            changed = transitions.replace(changed, active=changed.known_good)  # nothing runs after a start
        if was in _SUSPECT:
            return transitions.interrupt(changed, event, case, self._limits, was=was)
        return transitions.crash(changed, event, case, was=was) if event.ended == "crash" else changed

    def _pass_deadline(
        self, state: UpdateRecord, changed: UpdateRecord, event: DeadlinePassed, case: str, row: Row
    ) -> UpdateRecord:
        if case == "stable":
            return transitions.replace(changed, watching=False, crashes=0, deadline=None)
        if row.next_state in (CLEANING, ROLLING_BACK) and state.name is not ROLLING_BACK:
            over = state.name in _BEFORE and not transitions.seconds_left(state, event.at, self._limits)
            message = f"{state.name.value} took longer than {self._limits.step_timeout_seconds:g} s"
            message = f"{state.name.value} had not ended" if over else message
            passing = over or state.name in (RESOLVING, DOWNLOADING)
            late = Failed(error="DeadlinePassed", message=message, passing=passing, costly=True, at=event.at)
            return transitions.fail(changed, late, self._limits)
        return transitions.replace(changed, probing=True) if state.name is PROBATION else changed

    def _deadline(self, state: UpdateRecord, row: Row, now: float, at: float) -> float | None:
        """When the new state, or its effect, takes too long. Before ACTIVATING the age of the deployment counts too."""
        if state.name is IDLE:
            return self._idle_deadline(state, row, now)
        if row.effects == (Effect.WATCH,):
            return now + self._limits.probation_seconds
        if state.name is ROLLING_BACK and not row.effects:
            return now + self._limits.retry_seconds
        left = transitions.seconds_left(state, at, self._limits) if state.name in _BEFORE else math.inf
        if state.name is SHADOWING:  # it has a time limit of its own
            return None if math.isinf(left) else now + left + CLOCKS_DIFFER_SECONDS
        if not left and row.event not in (Booted, DeadlinePassed):
            left = math.inf  # the last step succeeded: the age ends steps that fail or hang, not steps that succeed
        return now + min(self._limits.step_timeout_seconds, left + CLOCKS_DIFFER_SECONDS)

    def _idle_deadline(self, state: UpdateRecord, row: Row, now: float) -> float | None:
        """When to try the deployment again, or when a commit is final."""
        if state.deployment is not None:
            return now if row.event is Booted else now + self._retry_delay(state.attempts)
        return now + self._limits.crash_watch_seconds if state.watching else None

    def _retry_delay(self, attempts: int) -> float:
        exponent = min(max(attempts - 1, 0), 16)
        return min(self._limits.max_retry_seconds, self._limits.retry_seconds * 2.0**exponent)
