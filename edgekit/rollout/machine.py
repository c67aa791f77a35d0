"""The state machine of a rollout: it brings one version of one model to a fleet in waves and pauses on failures.

Only `step` changes a Rollout, and TABLE lists the events that each state allows. The caller passes in what each device
*reports*. A device has succeeded when it reports that it runs and has committed the assigned digest; the assignment
alone does not count. A device that reports nothing until its deadline has failed.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from edgekit.errors import RefusedError
from edgekit.mqtt.messages import Outcome, Running
from edgekit.rollout.cohort import Cohort, wave_order
from edgekit.rollout.plan import RolloutPlan

FAILURES = ("failed", "rolled-back", "refused")
SILENT = "silent"
MAX_REASON = 500


class RolloutState(str, enum.Enum):
    """State of a rollout."""

    DRAFT = "DRAFT"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    ABORTED = "ABORTED"


class DeviceState(str, enum.Enum):
    """State of one device in a rollout.

    ASSIGNED: the device has the assignment and has not reported an outcome; JSON and the database call this ``TOLD``.
    SKIPPED: the model has no bundle for the device's target.
    """

    PENDING = "PENDING"
    ASSIGNED = "TOLD"  # the value is stored in databases and printed as JSON
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


class DeviceProgress(msgspec.Struct, frozen=True, rename={"assigned_at": "told_at"}):
    """One device in a rollout.

    Attributes:
        state: The device's state.
        digest: Digest of the bundle for its target; empty if the model has none.
        assigned_at: Start of its deadline, wall clock seconds; 0 before it has the assignment. Stored as ``told_at``.
        wave: Index of the wave in which it got the assignment.
        reason: Why it failed or was skipped, for people.
        old_outcome: Time stamp of a failure of the same digest before this assignment; that failure does not count.
        excused: True if it failed before an operator resumed the rollout; it does not count towards the thresholds.
    """

    state: DeviceState
    digest: str = ""
    assigned_at: float = 0.0
    wave: int = 0
    reason: str = ""
    old_outcome: float | None = None
    excused: bool = False


class Rollout(msgspec.Struct, frozen=True):
    """The complete state of a rollout.

    Attributes:
        id: Rises with every rollout.
        model, version: The model and the version that is rolled out.
        plan: Waves and thresholds.
        cohort: The devices that the rollout selects.
        state: State of the machine.
        wave: Index of the current wave.
        reason: Why it is paused or aborted, for people.
        stopped_itself: True if failures paused it, false if an operator did.
        devices: Progress by device name.
    """

    id: int
    model: str
    version: str
    plan: RolloutPlan = RolloutPlan()
    cohort: Cohort = Cohort()
    state: RolloutState = RolloutState.DRAFT
    wave: int = 0
    reason: str = ""
    stopped_itself: bool = False
    devices: dict[str, DeviceProgress] = {}

    def counts(self) -> dict[str, int]:
        """Number of devices by state, with zeros."""
        counts = {state.value: 0 for state in DeviceState}
        for progress in self.devices.values():
            counts[progress.state.value] += 1
        return counts

    @property
    def ended(self) -> bool:
        """True when no event can change it any more."""
        return self.state in (RolloutState.FINISHED, RolloutState.ABORTED)


# --- events


class DeviceStatus(msgspec.Struct, frozen=True):
    """Last report of one device about this rollout's model.

    Attributes:
        digest: Digest of the bundle for its target; empty if the model has none.
        running: What the device runs, as it last reported; None before its first report.
        outcome: Outcome of the last deployment of the model, as the device reported it.
    """

    digest: str
    running: Running | None = None
    outcome: Outcome | None = None


class Started(msgspec.Struct, frozen=True):
    """An operator started it."""


class Surveyed(msgspec.Struct, frozen=True):
    """A survey of the fleet: `devices` holds the devices that changed since the last survey, and may be empty."""

    devices: Mapping[str, DeviceStatus] = {}


class Paused(msgspec.Struct, frozen=True):
    """An operator paused it."""

    reason: str = "paused by an operator"


class Resumed(msgspec.Struct, frozen=True):
    """An operator resumed it and accepted the failures up to now."""


class Aborted(msgspec.Struct, frozen=True):
    """An operator aborted it."""

    reason: str = "aborted by an operator"


RolloutEvent: TypeAlias = "Started | Surveyed | Paused | Resumed | Aborted"


# --- effects


class Assign(msgspec.Struct, frozen=True):
    """Assign this rollout's bundle to the device."""

    device: str


class Revert(msgspec.Struct, frozen=True):
    """Restore the device's previous assignment for the model, or remove the model if there was none."""

    device: str


Effect: TypeAlias = "Assign | Revert"


class RolloutStep(msgspec.Struct, frozen=True):
    """Result of a step.

    Attributes:
        state: The new state.
        effects: What the caller must do, in this order.
        wake_at: Wall clock seconds of the next survey that is due without a new report; None if none is.
    """

    state: Rollout
    effects: tuple[Effect, ...] = ()
    wake_at: float | None = None


def step(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    """Apply one event.

    Args:
        rollout: The state before.
        event: What happened.
        now: Wall clock seconds.

    Raises:
        RefusedError: the rollout's state does not allow this event.
    """
    row = TABLE.get((rollout.state, type(event)))
    if row is None:
        verb = type(event).__name__.lower()
        raise RefusedError(
            f"rollout {rollout.id} is {rollout.state.value} and cannot be {verb}",
            advice=f"See: edgekit rollout status {rollout.id}",
        )
    return row(rollout, event, now)


# --- rows


def _start(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    return _settle(msgspec.structs.replace(rollout, state=RolloutState.RUNNING), now)


def _survey_running(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    assert isinstance(event, Surveyed)
    devices = _with_reports(rollout, event)
    limit = rollout.plan.device_deadline_seconds
    for name, progress in devices.items():
        if progress.state is DeviceState.ASSIGNED and now - progress.assigned_at >= limit:
            reason = f"{SILENT}: the device reported neither success nor failure within {limit:g} s"
            devices[name] = msgspec.structs.replace(progress, state=DeviceState.FAILED, reason=reason)
    return _settle(msgspec.structs.replace(rollout, devices=devices), now)


def _survey_paused(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    assert isinstance(event, Surveyed)
    return RolloutStep(msgspec.structs.replace(rollout, devices=_with_reports(rollout, event)))


def _ignore(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    return RolloutStep(rollout)


def _pause(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    assert isinstance(event, Paused)
    return RolloutStep(msgspec.structs.replace(rollout, state=RolloutState.PAUSED, reason=event.reason))


def _resume(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    devices = dict(rollout.devices)
    for name, progress in devices.items():
        if progress.state is DeviceState.FAILED:
            devices[name] = msgspec.structs.replace(progress, excused=True)
        elif progress.state is DeviceState.ASSIGNED:  # the pause does not count towards its deadline
            devices[name] = msgspec.structs.replace(progress, assigned_at=now)
    running = msgspec.structs.replace(
        rollout, state=RolloutState.RUNNING, reason="", stopped_itself=False, devices=devices
    )
    return _settle(running, now)


def _abort(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    assert isinstance(event, Aborted)
    reason = f"{event.reason} (was paused: {rollout.reason})" if rollout.state is RolloutState.PAUSED else event.reason
    effects = tuple(
        Revert(name)
        for name, progress in sorted(rollout.devices.items())
        if progress.state in (DeviceState.ASSIGNED, DeviceState.FAILED)
    )
    return RolloutStep(msgspec.structs.replace(rollout, state=RolloutState.ABORTED, reason=reason), effects)


Row: TypeAlias = Callable[[Rollout, RolloutEvent, float], RolloutStep]

TABLE: dict[tuple[RolloutState, type], Row] = {
    (RolloutState.DRAFT, Started): _start,
    (RolloutState.DRAFT, Surveyed): _ignore,
    (RolloutState.DRAFT, Aborted): _abort,
    (RolloutState.RUNNING, Surveyed): _survey_running,
    (RolloutState.RUNNING, Paused): _pause,
    (RolloutState.RUNNING, Aborted): _abort,
    (RolloutState.PAUSED, Surveyed): _survey_paused,
    (RolloutState.PAUSED, Resumed): _resume,
    (RolloutState.PAUSED, Aborted): _abort,
    (RolloutState.FINISHED, Surveyed): _ignore,
    (RolloutState.ABORTED, Surveyed): _ignore,
}


# --- rules


def _with_reports(rollout: Rollout, event: Surveyed) -> dict[str, DeviceProgress]:
    devices = dict(rollout.devices)
    for name, status in event.devices.items():
        devices[name] = _judge(devices.get(name, DeviceProgress(DeviceState.SKIPPED)), status)
    return devices


def _judge(progress: DeviceProgress, status: DeviceStatus) -> DeviceProgress:
    """The device's progress after its last report."""
    failure = _failure(progress.digest or status.digest, status)
    if progress.state in (DeviceState.SKIPPED, DeviceState.PENDING):
        if not status.digest:
            return DeviceProgress(DeviceState.SKIPPED, reason="the model has no bundle for its target")
        return DeviceProgress(DeviceState.PENDING, digest=status.digest, old_outcome=failure.at if failure else None)
    running = status.running
    if running is not None and running.digest == progress.digest and running.state == "IDLE":
        return msgspec.structs.replace(progress, state=DeviceState.SUCCEEDED, reason="", excused=False)
    if failure and failure.at != progress.old_outcome:
        reason = ": ".join(part for part in (failure.result, failure.error, failure.message) if part)
        return msgspec.structs.replace(progress, state=DeviceState.FAILED, reason=reason[:MAX_REASON])
    return progress


def _failure(digest: str, status: DeviceStatus) -> Outcome | None:
    outcome = status.outcome
    return outcome if outcome and outcome.deployment == digest and outcome.result in FAILURES else None


def _settle(rollout: Rollout, now: float) -> RolloutStep:
    """Pause on failures; otherwise start the next waves and assign the bundle to their devices, or finish."""
    reason = _too_many_failures(rollout)
    if reason:
        return RolloutStep(_stopped(rollout, reason))
    devices = dict(rollout.devices)
    eligible = [name for name, progress in devices.items() if progress.state is not DeviceState.SKIPPED]
    if not eligible:
        return RolloutStep(rollout)  # no device yet; devices that enroll later get the assignment
    assigned = sum(devices[name].state is not DeviceState.PENDING for name in eligible)
    wave = rollout.wave
    while True:
        room = rollout.plan.waves[wave].limit(len(eligible)) - assigned
        if room > 0 or wave == len(rollout.plan.waves) - 1 or not _wave_succeeded(rollout, wave):
            break
        wave += 1
    pending = [name for name in eligible if devices[name].state is DeviceState.PENDING]
    chosen = wave_order(rollout.id, pending)[: max(0, room)]
    for name in chosen:
        devices[name] = msgspec.structs.replace(devices[name], state=DeviceState.ASSIGNED, assigned_at=now, wave=wave)
    settled = msgspec.structs.replace(rollout, wave=wave, devices=devices)
    return _ended(settled, tuple(Assign(name) for name in chosen))


def _ended(rollout: Rollout, effects: tuple[Effect, ...]) -> RolloutStep:
    waiting = [p.assigned_at for p in rollout.devices.values() if p.state is DeviceState.ASSIGNED]
    if waiting:
        return RolloutStep(rollout, effects, wake_at=min(waiting) + rollout.plan.device_deadline_seconds)
    if not _wave_succeeded(rollout, rollout.wave):
        share = rollout.plan.success_threshold
        reason = f"wave {rollout.wave + 1} ended with less than {share:.0%} of its devices succeeded"
        return RolloutStep(_stopped(rollout, reason), effects)
    return RolloutStep(msgspec.structs.replace(rollout, state=RolloutState.FINISHED), effects)


def _stopped(rollout: Rollout, reason: str) -> Rollout:
    return msgspec.structs.replace(rollout, state=RolloutState.PAUSED, reason=reason, stopped_itself=True)


def _too_many_failures(rollout: Rollout) -> str:
    plan = rollout.plan
    judged = [p for p in rollout.devices.values() if p.assigned_at and not p.excused]
    failed = [p for p in judged if p.state is DeviceState.FAILED]
    if len(failed) < plan.min_failures or len(failed) <= plan.error_threshold * len(judged):
        return ""
    return (
        f"{len(failed)} of {len(judged)} assigned devices failed ({len(failed) / len(judged):.0%}), "
        f"more than the error threshold of {plan.error_threshold:.0%}"
    )


def _wave_succeeded(rollout: Rollout, wave: int) -> bool:
    judged = [p for p in rollout.devices.values() if p.assigned_at and p.wave == wave and not p.excused]
    succeeded = sum(progress.state is DeviceState.SUCCEEDED for progress in judged)
    return not judged or succeeded >= max(1, math.ceil(rollout.plan.success_threshold * len(judged) - 1e-9))
