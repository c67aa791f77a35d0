"""UpdateMachine: how one model of a device gets from one bundle to the next. One table; no I/O, no clock.

The shell journals the state that `step` returns, runs its effects in order, feeds each outcome back as one event, and
feeds DeadlinePassed at `wake_at`. Every effect is safe to repeat. `now` is in monotonic seconds and serves deadlines
only; `at` in events is wall clock and serves reports and the time that a whole deployment has.
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
    Do,
    Downloaded,
    Event,
    Failed,
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
from device_agents.update import transitions as then

CLOCKS_DIFFER_SECONDS = 1.0  # between monotonic and wall clock, so that a budget is over when its deadline passes


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
_SUSPECT = (S.TESTING, *_AFTER)  # a device that stops here may have been stopped by the new bundle
_CLEANED = (Cleaned, Failed, DeadlinePassed)

# fmt: off
TABLE: tuple[Row, ...] = (
    #   state           event           when         next state      effects
    Row(S.IDLE,         Offered,        "wanted",    S.RESOLVING,    (Do.RESOLVE,)),
    Row(S.IDLE,         Offered,        "older",     S.IDLE),
    Row(S.IDLE,         Offered,        "unchanged", S.IDLE),
    Row(S.IDLE,         Cancelled,      "",          S.IDLE),
    Row(S.IDLE,         DeadlinePassed, "retry",     S.RESOLVING,    (Do.RESOLVE,)),
    Row(S.IDLE,         DeadlinePassed, "stable",    S.IDLE),
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
    # What is not whole any more answers nobody; the bundle before it does, if that is whole, and then it comes again.
    *(Row(s,            Damaged,        "",          S.ROLLING_BACK, (Do.ROLL_BACK,)) for s in S),
    Row(S.IDLE,         Damaged,        "alone",     S.IDLE),  # what is in memory still answers rightly
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
    Row(S.COMMITTING,   Booted, "often",  S.ROLLING_BACK, (Do.ROLL_BACK,)),
    Row(S.ROLLING_BACK, Booted, "",       S.ROLLING_BACK, (Do.ROLL_BACK,)),
    Row(S.CLEANING,     Booted, "",       S.CLEANING,     (Do.CLEAN,)),
    # What was committed, and ends the process again and again, is not loaded once more.
    *(Row(s,            Booted, "looping", S.ROLLING_BACK, (Do.ROLL_BACK,))
      for s in S if s not in _SUSPECT),
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
            after = msgspec.structs.replace(after, deadline=self._deadline(after, row, now, event.at))
        elif after.name is S.IDLE and after.deadline is None:
            after = msgspec.structs.replace(after, deadline=self._idle_deadline(after, row, now))
        return Step(after, row.effects, after.deadline)

    def _case(self, state: State, event: Event) -> str:
        """Which of a row's cases holds."""
        if isinstance(event, Offered):
            return then.offer_case(state, event.deployment)
        if isinstance(event, DeadlinePassed) and state.name is S.IDLE:
            return "retry" if state.deployment is not None else "stable" if state.watching else ""
        if isinstance(event, DeadlinePassed) and state.name is S.PROBATION:
            return "late" if state.probing else "watched"
        if state.name is S.CLEANING and isinstance(event, Cleaned | Failed | DeadlinePassed):
            fresh = state.offered is not None and then.idle_offer_case(state, state.offered) == "wanted"
            return "offered" if fresh else ""
        if isinstance(event, Damaged) and state.name is S.IDLE:
            return "alone" if event.answering and not event.fallback else ""
        return self._boot_case(state, event) if isinstance(event, Booted) else ""

    def _boot_case(self, state: State, event: Booted) -> str:
        """Whether what was under test, or what was committed, ends the process or the device again and again."""
        if state.name in _SUSPECT:
            often = event.ended != "order" and state.interrupted + 1 >= self._limits.max_interruptions
            return "often" if often else ""
        counts = event.ended == "crash" and (state.watching or state.name is S.ROLLING_BACK)
        loops = counts and state.known_good is not None and state.crashes + 1 >= self._limits.max_crashes
        return "looping" if loops else ""

    def _apply(self, state: State, event: Event, case: str, row: Row) -> State:
        """The new state but for its deadline."""
        if state.name is S.CLEANING and row.then in (S.IDLE, S.RESOLVING):
            return then.leave_cleaning(state, event, case)
        changed = then.replace(state, name=row.then)
        if row.then is S.STAGING:
            changed = then.replace(changed, previous=None)  # its slot is written
        if isinstance(event, Booted):
            return self._boot(changed, event, case, row, was=state.name)
        if isinstance(event, Damaged):
            return then.damage(changed, event, case, was=state.name)
        if isinstance(event, Offered):
            return then.offer(changed, event, case, was=state.name, before=state.name in _BEFORE)
        if isinstance(event, Cancelled):
            return then.cancel(changed, was=state.name, before=state.name in _BEFORE)
        if isinstance(event, Failed) and state.name is not S.ROLLING_BACK:
            return then.fail(changed, event, self._limits)
        if isinstance(event, DeadlinePassed):
            return self._pass_deadline(state, changed, event, case, row)
        if isinstance(event, Watched):
            return then.replace(changed, probing=True)
        if isinstance(event, Activated):
            return then.replace(changed, active=then.installed(state, event.at), probing=False)
        if isinstance(event, Committed):
            return then.commit(changed, event)
        if isinstance(event, RolledBack):
            return then.replace(changed, active=state.known_good)
        return changed

    def _boot(self, changed: State, event: Booted, case: str, row: Row, *, was: S) -> State:
        if row.then is S.ROLLING_BACK:
            changed = then.replace(changed, active=changed.known_good)  # of what ran before nothing does
        if was in _SUSPECT:
            return then.interrupt(changed, event, case, self._limits, was=was)
        return then.crash(changed, event, case, was=was) if event.ended == "crash" else changed

    def _pass_deadline(self, state: State, changed: State, event: DeadlinePassed, case: str, row: Row) -> State:
        if case == "stable":
            return then.replace(changed, watching=False, crashes=0, deadline=None)
        if row.then in (S.CLEANING, S.ROLLING_BACK) and state.name is not S.ROLLING_BACK:
            over = state.name in _BEFORE and not then.seconds_left(state, event.at, self._limits)
            message = f"{state.name.value} took longer than {self._limits.step_seconds:g} s"
            message = f"{state.name.value} had not ended" if over else message
            passing = over or state.name in (S.RESOLVING, S.DOWNLOADING)
            late = Failed(error="DeadlinePassed", message=message, passing=passing, costly=True, at=event.at)
            return then.fail(changed, late, self._limits)
        return then.replace(changed, probing=True) if state.name is S.PROBATION else changed

    def _deadline(self, state: State, row: Row, now: float, at: float) -> float | None:
        """When the state that was entered, or its effect, takes too long; before ACTIVATING the budget ends it too."""
        if state.name is S.IDLE:
            return self._idle_deadline(state, row, now)
        if row.effects == (Do.WATCH,):
            return now + self._limits.probation_seconds
        if state.name is S.ROLLING_BACK and not row.effects:
            return now + self._limits.retry_seconds
        left = then.seconds_left(state, at, self._limits) if state.name in _BEFORE else math.inf
        if not left and row.event not in (Booted, DeadlinePassed):
            left = math.inf  # what came before succeeded: the budget ends what fails or hangs, not what goes well
        return now + min(self._limits.step_seconds, left + CLOCKS_DIFFER_SECONDS)

    def _idle_deadline(self, state: State, row: Row, now: float) -> float | None:
        """When to try again, or when a commit is final."""
        if state.deployment is not None:
            return now if row.event is Booted else now + self._retry_delay(state.attempts)
        return now + self._limits.crash_watch_seconds if state.watching else None

    def _retry_delay(self, attempts: int) -> float:
        exponent = min(max(attempts - 1, 0), 16)
        return min(self._limits.max_retry_seconds, self._limits.retry_seconds * 2.0**exponent)
