"""The Rollout machine: one version of one model, brought to a fleet in waves, stopped by its own failures.

`step` is the only thing that changes a Rollout, and TABLE says what may happen in which state. The shell looks at the
fleet and tells the machine what each device *reports*: a device counts as succeeded when the wanted digest runs there
and was committed, never because it was told. Silence beyond the deadline is a failure.
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
from edgekit.rollout.plan import Plan

FAILURES = ("failed", "rolled-back", "refused")
SILENT = "silent"
MAX_REASON = 500


class State(str, enum.Enum):
    """Of a rollout."""

    DRAFT = "DRAFT"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    ABORTED = "ABORTED"


class DeviceState(str, enum.Enum):
    """Of one device in a rollout. SKIPPED: the model has no bundle for its target."""

    PENDING = "PENDING"
    TOLD = "TOLD"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


class Progress(msgspec.Struct, frozen=True):
    """One device in a rollout.

    Attributes:
        state: Where it stands.
        digest: Of the bundle for its target; empty where there is none.
        told_at: Wall clock seconds of when its deadline began; 0 while it was not told.
        wave: Index of the wave in which it was told.
        reason: Why it failed or was skipped, for people.
        old_outcome: Time stamp of a failure of this very digest from before it was told, which does not count again.
        excused: It failed before an operator resumed the rollout; does not count towards the thresholds.
    """

    state: DeviceState
    digest: str = ""
    told_at: float = 0.0
    wave: int = 0
    reason: str = ""
    old_outcome: float | None = None
    excused: bool = False


class Rollout(msgspec.Struct, frozen=True):
    """The whole state.

    Attributes:
        id: Rises with every rollout.
        model, version: What is rolled out.
        plan, cohort: How, and to whom.
        state: Of the machine.
        wave: Index of the current wave.
        reason: Why it is paused or aborted.
        stopped_itself: It is paused because of its devices, and not by an operator.
        devices: By device name.
    """

    id: int
    model: str
    version: str
    plan: Plan = Plan()
    cohort: Cohort = Cohort()
    state: State = State.DRAFT
    wave: int = 0
    reason: str = ""
    stopped_itself: bool = False
    devices: dict[str, Progress] = {}

    def counts(self) -> dict[str, int]:
        """Devices by state, every state named."""
        counts = {state.value: 0 for state in DeviceState}
        for progress in self.devices.values():
            counts[progress.state.value] += 1
        return counts

    @property
    def ended(self) -> bool:
        """True when nothing can happen to it any more."""
        return self.state in (State.FINISHED, State.ABORTED)


# --- events


class Sight(msgspec.Struct, frozen=True):
    """What is known of one device and this rollout's model.

    Attributes:
        digest: Of the bundle for its target; empty where the model has none.
        running: What the device last reported of the model; None before its first report.
        outcome: How the last deployment of the model ended, as reported.
    """

    digest: str
    running: Running | None = None
    outcome: Outcome | None = None


class Started(msgspec.Struct, frozen=True):
    """An operator started it."""


class Surveyed(msgspec.Struct, frozen=True):
    """The fleet was looked at, or time passed: `devices` holds those that changed since the last look."""

    devices: Mapping[str, Sight] = {}


class Paused(msgspec.Struct, frozen=True):
    """An operator paused it."""

    reason: str = "paused by an operator"


class Resumed(msgspec.Struct, frozen=True):
    """An operator resumed it, knowing of the failures so far."""


class Aborted(msgspec.Struct, frozen=True):
    """An operator aborted it."""

    reason: str = "aborted by an operator"


Event: TypeAlias = "Started | Surveyed | Paused | Resumed | Aborted"


# --- effects


class Tell(msgspec.Struct, frozen=True):
    """Make this rollout's bundle the device's assigned one for the model."""

    device: str


class Withdraw(msgspec.Struct, frozen=True):
    """Give the device back the assignment that it had for the model before it was told, or none."""

    device: str


Effect: TypeAlias = "Tell | Withdraw"


class Step(msgspec.Struct, frozen=True):
    """The new state, what must be done, and when to look again (wall clock seconds; None: only when asked)."""

    state: Rollout
    effects: tuple[Effect, ...] = ()
    wake_at: float | None = None


def step(rollout: Rollout, event: Event, now: float) -> Step:
    """Take one event.

    Args:
        rollout: The state before.
        event: What happened.
        now: Wall clock seconds.

    Raises:
        RefusedError: an operator asked for something that this state does not allow.
    """
    row = TABLE.get((rollout.state, type(event)))
    if row is None:
        asked = type(event).__name__.lower()
        raise RefusedError(
            f"rollout {rollout.id} is {rollout.state.value} and cannot be {asked}",
            advice=f"See `edgekit rollout status {rollout.id}`.",
        )
    return row(rollout, event, now)


# --- rows


def _start(rollout: Rollout, event: Event, now: float) -> Step:
    return _settle(msgspec.structs.replace(rollout, state=State.RUNNING), now)


def _survey_running(rollout: Rollout, event: Event, now: float) -> Step:
    assert isinstance(event, Surveyed)
    devices = _seen(rollout, event)
    limit = rollout.plan.device_deadline_seconds
    for name, progress in devices.items():
        if progress.state is DeviceState.TOLD and now - progress.told_at >= limit:
            reason = f"{SILENT}: neither success nor failure within {limit:g} s"
            devices[name] = msgspec.structs.replace(progress, state=DeviceState.FAILED, reason=reason)
    return _settle(msgspec.structs.replace(rollout, devices=devices), now)


def _survey_paused(rollout: Rollout, event: Event, now: float) -> Step:
    assert isinstance(event, Surveyed)
    return Step(msgspec.structs.replace(rollout, devices=_seen(rollout, event)))


def _ignore(rollout: Rollout, event: Event, now: float) -> Step:
    return Step(rollout)


def _pause(rollout: Rollout, event: Event, now: float) -> Step:
    assert isinstance(event, Paused)
    return Step(msgspec.structs.replace(rollout, state=State.PAUSED, reason=event.reason))


def _resume(rollout: Rollout, event: Event, now: float) -> Step:
    devices = dict(rollout.devices)
    for name, progress in devices.items():
        if progress.state is DeviceState.FAILED:
            devices[name] = msgspec.structs.replace(progress, excused=True)
        elif progress.state is DeviceState.TOLD:  # the pause was not the device's fault
            devices[name] = msgspec.structs.replace(progress, told_at=now)
    running = msgspec.structs.replace(rollout, state=State.RUNNING, reason="", stopped_itself=False, devices=devices)
    return _settle(running, now)


def _abort(rollout: Rollout, event: Event, now: float) -> Step:
    assert isinstance(event, Aborted)
    reason = f"{event.reason} (was paused: {rollout.reason})" if rollout.state is State.PAUSED else event.reason
    effects = tuple(
        Withdraw(name)
        for name, progress in sorted(rollout.devices.items())
        if progress.state in (DeviceState.TOLD, DeviceState.FAILED)
    )
    return Step(msgspec.structs.replace(rollout, state=State.ABORTED, reason=reason), effects)


Row: TypeAlias = Callable[[Rollout, Event, float], Step]

TABLE: dict[tuple[State, type], Row] = {
    (State.DRAFT, Started): _start,
    (State.DRAFT, Surveyed): _ignore,
    (State.DRAFT, Aborted): _abort,
    (State.RUNNING, Surveyed): _survey_running,
    (State.RUNNING, Paused): _pause,
    (State.RUNNING, Aborted): _abort,
    (State.PAUSED, Surveyed): _survey_paused,
    (State.PAUSED, Resumed): _resume,
    (State.PAUSED, Aborted): _abort,
    (State.FINISHED, Surveyed): _ignore,
    (State.ABORTED, Surveyed): _ignore,
}


# --- rules


def _seen(rollout: Rollout, event: Surveyed) -> dict[str, Progress]:
    devices = dict(rollout.devices)
    for name, sight in event.devices.items():
        devices[name] = _judge(devices.get(name, Progress(DeviceState.SKIPPED)), sight)
    return devices


def _judge(progress: Progress, sight: Sight) -> Progress:
    """Where a device stands, by what it reports."""
    failure = _failure(progress.digest or sight.digest, sight)
    if progress.state in (DeviceState.SKIPPED, DeviceState.PENDING):
        if not sight.digest:
            return Progress(DeviceState.SKIPPED, reason="the model has no bundle for its target")
        return Progress(DeviceState.PENDING, digest=sight.digest, old_outcome=failure.at if failure else None)
    running = sight.running
    if running is not None and running.digest == progress.digest and running.state == "IDLE":
        return msgspec.structs.replace(progress, state=DeviceState.SUCCEEDED, reason="", excused=False)
    if failure and failure.at != progress.old_outcome:
        reason = ": ".join(part for part in (failure.result, failure.error, failure.message) if part)
        return msgspec.structs.replace(progress, state=DeviceState.FAILED, reason=reason[:MAX_REASON])
    return progress


def _failure(digest: str, sight: Sight) -> Outcome | None:
    outcome = sight.outcome
    return outcome if outcome and outcome.deployment == digest and outcome.result in FAILURES else None


def _settle(rollout: Rollout, now: float) -> Step:
    """Pause, or begin waves and tell their devices, or finish: whatever the devices' states ask for."""
    reason = _too_many_failures(rollout)
    if reason:
        return Step(_stopped(rollout, reason))
    devices = dict(rollout.devices)
    eligible = [name for name, progress in devices.items() if progress.state is not DeviceState.SKIPPED]
    if not eligible:
        return Step(rollout)  # nobody yet: devices that enroll later are told
    told = sum(devices[name].state is not DeviceState.PENDING for name in eligible)
    wave = rollout.wave
    while True:
        room = rollout.plan.waves[wave].limit(len(eligible)) - told
        if room > 0 or wave == len(rollout.plan.waves) - 1 or not _wave_succeeded(rollout, wave):
            break
        wave += 1
    pending = [name for name in eligible if devices[name].state is DeviceState.PENDING]
    chosen = wave_order(rollout.id, pending)[: max(0, room)]
    for name in chosen:
        devices[name] = msgspec.structs.replace(devices[name], state=DeviceState.TOLD, told_at=now, wave=wave)
    settled = msgspec.structs.replace(rollout, wave=wave, devices=devices)
    return _ended(settled, tuple(Tell(name) for name in chosen))


def _ended(rollout: Rollout, effects: tuple[Effect, ...]) -> Step:
    waiting = [p.told_at for p in rollout.devices.values() if p.state is DeviceState.TOLD]
    if waiting:
        return Step(rollout, effects, wake_at=min(waiting) + rollout.plan.device_deadline_seconds)
    if not _wave_succeeded(rollout, rollout.wave):
        share = rollout.plan.success_threshold
        reason = f"wave {rollout.wave + 1} ended with less than {share:.0%} of its devices succeeded"
        return Step(_stopped(rollout, reason), effects)
    return Step(msgspec.structs.replace(rollout, state=State.FINISHED), effects)


def _stopped(rollout: Rollout, reason: str) -> Rollout:
    return msgspec.structs.replace(rollout, state=State.PAUSED, reason=reason, stopped_itself=True)


def _too_many_failures(rollout: Rollout) -> str:
    plan = rollout.plan
    judged = [p for p in rollout.devices.values() if p.told_at and not p.excused]
    failed = [p for p in judged if p.state is DeviceState.FAILED]
    if len(failed) < plan.min_failures or len(failed) <= plan.error_threshold * len(judged):
        return ""
    return (
        f"{len(failed)} of {len(judged)} told devices failed ({len(failed) / len(judged):.0%}), "
        f"more than the error threshold of {plan.error_threshold:.0%}"
    )


def _wave_succeeded(rollout: Rollout, wave: int) -> bool:
    judged = [p for p in rollout.devices.values() if p.told_at and p.wave == wave and not p.excused]
    succeeded = sum(progress.state is DeviceState.SUCCEEDED for progress in judged)
    return not judged or succeeded >= max(1, math.ceil(rollout.plan.success_threshold * len(judged) - 1e-9))
