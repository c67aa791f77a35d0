"""The state machine of a rollout: it brings one version of one model to a fleet in waves and pauses on failures.

Only `step` changes a Rollout, and TABLE lists the events that each state allows. The caller passes in what each device
*reports*. A device has succeeded when it reports that it runs and has committed the assigned digest; the assignment
alone does not count. A device that reports nothing until its deadline has failed. A device that says that it waits on
purpose has neither succeeded nor failed.

Decisions are final: an ended rollout stays ended, for the reason that it had. The devices are watched further, so that
those that succeed late, or had activated the bundle before an abort, are shown as what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from edgekit.errors import RefusedError
from edgekit.rollout.allowance import Allowance, wave_rate
from edgekit.rollout.cohort import wave_order
from edgekit.rollout.control_cohort import MIN_CONTROLS, compare, controls, heard
from edgekit.rollout.gate_watch import failed_gate, gate_views, observe
from edgekit.rollout.judging import after_deadline, changed, deadline, judge, judge_late, restarted, retried, set_right
from edgekit.rollout.plan import BEFORE_WAVES, COHORT, RETURN
from edgekit.rollout.shadowing import agreement_gate, compared, let_go, nothing_compared, own_failure
from edgekit.rollout.values import (
    IN_FLIGHT,
    OUTSIDE,
    UNASSIGNED,
    UNDECIDED,
    Aborted,
    Approved,
    Assign,
    Cancelled,
    DeviceProgress,
    DeviceState,
    Effect,
    Forced,
    Keep,
    Paused,
    Resumed,
    Retried,
    Return,
    Revert,
    Rollout,
    RolloutEvent,
    RolloutState,
    RolloutStep,
    Started,
    Surveyed,
    decided,
)


def step(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    """Apply one event.

    Args:
        rollout: The state before.
        event: What happened.
        now: Wall clock seconds.

    Raises:
        RefusedError: the rollout's state does not allow this event, or its stored state cannot be read and the event is
            no abort.
    """
    if rollout.fault and not isinstance(event, Aborted):
        return _leave_unreadable(rollout, event)
    row = TABLE.get((rollout.state, type(event)))
    if row is None:
        verb = type(event).__name__.lower()
        again = f"Start it again, devices that run it succeed at once: edgekit rollout start {rollout.model} "
        raise RefusedError(
            f"rollout {rollout.id} is {rollout.state.value} and cannot be {verb}",
            advice=f"{again}{rollout.version}"
            if isinstance(event, Retried)
            else f"See: edgekit rollout status {rollout.id}",
        )
    return row(rollout, event, now)


def _leave_unreadable(rollout: Rollout, event: RolloutEvent) -> RolloutStep:
    if isinstance(event, Surveyed):
        return RolloutStep(rollout)
    raise RefusedError(
        f"rollout {rollout.id} cannot be {type(event).__name__.lower()}, because its stored state cannot be read: "
        f"{rollout.fault}",
        advice=f"End it: edgekit rollout abort {rollout.id}",
    )


# --- rows


def _start(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    return _settle(decided(rollout, RolloutState.RUNNING, now), now)


def _survey_running(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    assert isinstance(event, Surveyed)
    reported, reverts = _with_reports(rollout, event, now)
    devices = {name: after_deadline(set_right(one, now), rollout.plan, now) for name, one in reported.items()}
    settled = _settle(msgspec.structs.replace(rollout, devices=devices), now)
    return RolloutStep(settled.state, (*reverts, *settled.effects), settled.wake_at)


def _survey_paused(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    assert isinstance(event, Surveyed)
    devices, reverts = _with_reports(rollout, event, now)
    return RolloutStep(msgspec.structs.replace(rollout, devices=devices), reverts)


def _survey_ended(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    """Watch the devices further; an abort is undone for a device that had activated the bundle before it."""
    assert isinstance(event, Surveyed)
    devices, effects = dict(rollout.devices), []
    for name, status in event.devices.items():
        before = devices.get(name)
        if before is None:
            continue
        devices[name] = judge_late(before, status, now, returns=_returns(rollout))
        succeeded = devices[name].state is DeviceState.SUCCEEDED is not before.state
        if succeeded and rollout.state is RolloutState.ABORTED and not _returns(rollout):
            effects.append(Keep(name))
    return RolloutStep(msgspec.structs.replace(rollout, devices=devices), tuple(effects))


def _ignore(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    return RolloutStep(rollout)


def _pause(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    assert isinstance(event, Paused)
    return RolloutStep(decided(rollout, RolloutState.PAUSED, now, reason=event.reason))


def _resume(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    devices = {name: restarted(progress, now) for name, progress in rollout.devices.items()}
    failed = [view.gate for view in gate_views(rollout) if view.failed and not view.accepted]
    agreement = agreement_gate(rollout.plan)
    if agreement is not None and agreement.text not in failed and nothing_compared(rollout):
        failed.append(agreement.text)
    running = decided(rollout, RolloutState.RUNNING, now)
    accepted = (*rollout.accepted_gates, *failed)
    return _settle(msgspec.structs.replace(running, devices=devices, accepted_gates=accepted), now)


def _abort(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    assert isinstance(event, Aborted)
    reason = f"{event.reason} (was paused: {rollout.reason})" if rollout.state is RolloutState.PAUSED else event.reason
    if rollout.fault:
        reason = f"{event.reason} (its stored state could not be read: {rollout.fault})"
    effects = tuple(Revert(name) for name, progress in sorted(rollout.devices.items()) if progress.state in UNDECIDED)
    return RolloutStep(decided(rollout, RolloutState.ABORTED, now, reason=reason), effects)


def _approve(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    if not rollout.awaits_approval:
        raise RefusedError(
            f"no wave of rollout {rollout.id} waits for an approval",
            advice=f"See: edgekit rollout status {rollout.id}",
        )
    return _settle(msgspec.structs.replace(rollout, approved=rollout.approved + 1, awaits_approval=False), now)


def _retry(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    """Assign the bundle again where it failed or did not arrive; a paused rollout goes on."""
    devices = dict(rollout.devices)
    chosen = [
        name
        for name, progress in sorted(devices.items())
        if progress.state in (DeviceState.FAILED, DeviceState.NOT_REACHED)
    ]
    if not chosen:
        raise RefusedError(
            f"no device of rollout {rollout.id} has failed", advice=f"See: edgekit rollout status {rollout.id}"
        )
    for name in chosen:
        devices[name] = retried(devices[name], now)
    again = msgspec.structs.replace(rollout, devices=devices)
    if rollout.state is not RolloutState.RUNNING:
        again = decided(again, RolloutState.RUNNING, now)
    settled = _settle(again, now)
    return RolloutStep(settled.state, (*(Assign(name) for name in chosen), *settled.effects), settled.wake_at)


def _force(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    """Ask no user any more: devices on their way get the assignment without the condition, and so do later ones."""
    if not rollout.plan.consent:
        raise RefusedError(
            f"no device of rollout {rollout.id} waits until its user agrees",
            advice="Quiet hours, metered links and maintenance windows hold for every rollout.",
        )
    devices = dict(rollout.devices)
    chosen = [
        name for name, progress in sorted(devices.items()) if progress.state in (*IN_FLIGHT, DeviceState.NOT_REACHED)
    ]
    for name in chosen:
        if devices[name].state is DeviceState.NOT_REACHED:
            devices[name] = retried(devices[name], now)
    plan = msgspec.structs.replace(rollout.plan, consent=False)
    forced = msgspec.structs.replace(rollout, plan=plan, devices=devices)
    again = tuple(Assign(name) for name in chosen)
    if rollout.state is not RolloutState.RUNNING:
        return RolloutStep(forced, again)
    settled = _settle(forced, now)
    return RolloutStep(settled.state, (*again, *settled.effects), settled.wake_at)


def _cancel(rollout: Rollout, event: RolloutEvent, now: float) -> RolloutStep:
    """Take one device out; its earlier assignment comes back, where it had this one."""
    assert isinstance(event, Cancelled)
    progress = rollout.devices.get(event.device)
    if progress is not None and progress.state is DeviceState.CANCELLED:
        raise RefusedError(f"device {event.device!r} is cancelled in rollout {rollout.id} already")
    if progress is None or progress.state in OUTSIDE:
        raise RefusedError(
            f"device {event.device!r} is not in rollout {rollout.id}",
            advice=f"See which are: edgekit rollout status {rollout.id}",
        )
    if progress.state is DeviceState.SUCCEEDED:
        raise RefusedError(
            f"device {event.device!r} has succeeded in rollout {rollout.id}",
            advice=f"To bring it back, start a rollout of the earlier version with --filter 'name == {event.device}'.",
        )
    taken = msgspec.structs.replace(
        progress, state=DeviceState.CANCELLED, reason="cancelled by an operator", at=now, waiting_since=0.0
    )
    without = msgspec.structs.replace(rollout, devices={**rollout.devices, event.device: taken})
    reverts: tuple[Effect, ...] = (Revert(event.device),) if progress.state in UNDECIDED else ()
    if rollout.state is not RolloutState.RUNNING:
        return RolloutStep(without, reverts)
    settled = _settle(without, now)
    return RolloutStep(settled.state, (*reverts, *settled.effects), settled.wake_at)


Row: TypeAlias = Callable[[Rollout, RolloutEvent, float], RolloutStep]

TABLE: dict[tuple[RolloutState, type], Row] = {
    (RolloutState.DRAFT, Started): _start,
    (RolloutState.DRAFT, Surveyed): _ignore,
    (RolloutState.DRAFT, Aborted): _abort,
    (RolloutState.RUNNING, Surveyed): _survey_running,
    (RolloutState.RUNNING, Paused): _pause,
    (RolloutState.RUNNING, Aborted): _abort,
    (RolloutState.RUNNING, Approved): _approve,
    (RolloutState.RUNNING, Retried): _retry,
    (RolloutState.RUNNING, Forced): _force,
    (RolloutState.RUNNING, Cancelled): _cancel,
    (RolloutState.PAUSED, Surveyed): _survey_paused,
    (RolloutState.PAUSED, Resumed): _resume,
    (RolloutState.PAUSED, Aborted): _abort,
    (RolloutState.PAUSED, Retried): _retry,
    (RolloutState.PAUSED, Forced): _force,
    (RolloutState.PAUSED, Cancelled): _cancel,
    (RolloutState.FINISHED, Surveyed): _survey_ended,
    (RolloutState.ABORTED, Surveyed): _survey_ended,
}


# --- rules


def _with_reports(
    rollout: Rollout, event: Surveyed, now: float
) -> tuple[dict[str, DeviceProgress], tuple[Effect, ...]]:
    """The devices after their reports; those whose own comparison fails get their earlier assignment back."""
    devices, beside = dict(rollout.devices), rollout.plan.control == COHORT
    for name, status in event.devices.items():
        before = devices.get(name, DeviceProgress(DeviceState.SKIPPED))
        after = judge(before, status, now)
        if beside:
            after = heard(after, status.running, now)
        elif before.state not in UNASSIGNED:
            after = observe(after, status.running, rollout.plan.gates, f"{rollout.id}/{name}")
        devices[name] = compared(after, status.running, rollout.plan.shadow)
    if beside:
        devices = compare(devices, rollout.plan.gates, str(rollout.id), now, without=rollout.without_control)
    members = sum(one.state not in OUTSIDE for one in devices.values())
    reverts = []
    for name in event.devices:
        if devices[name].state in IN_FLIGHT and (reason := own_failure(devices[name], rollout, members)):
            devices[name] = changed(devices[name], DeviceState.FAILED, now, reason)
            reverts.append(Revert(name))
    return devices, tuple(reverts)


def _settle(rollout: Rollout, now: float) -> RolloutStep:
    """Stop on failures; otherwise start the next waves and assign the bundle to their devices, or finish."""
    reason = _too_many_failures(rollout) or failed_gate(rollout) or nothing_compared(rollout)
    if reason:
        return _stop(rollout, reason, now)
    devices = dict(rollout.devices)
    ready = let_go(rollout)
    for name in ready:
        devices[name] = msgspec.structs.replace(devices[name], shadowing=False, assigned_at=now, at=now, waited=0.0)
    eligible = [name for name, progress in devices.items() if progress.state not in OUTSIDE]
    if not eligible:
        return RolloutStep(rollout)  # no device yet; devices that enroll later get the assignment
    # A device that cannot be reached gives its place in the wave to another one.
    assigned = sum(devices[name].state not in (DeviceState.PENDING, DeviceState.NOT_REACHED) for name in eligible)
    pending = [name for name in eligible if devices[name].state is DeviceState.PENDING]
    wave = rollout.wave
    while True:
        able, room = _able(rollout, wave, pending), rollout.plan.waves[wave].limit(len(eligible)) - assigned
        room = room if able is pending else min(room, len(able))
        if room > 0 or wave == len(rollout.plan.waves) - 1 or not _wave_succeeded(rollout, wave):
            break
        if _soaks_until(rollout, wave) > now:
            break
        if not _is_approved(rollout, wave + 1):
            return _await_approval(rollout, now)
        wave += 1
    if room > 0 and not _is_approved(rollout, wave):
        return _await_approval(rollout, now)
    wanted = _next_devices(msgspec.structs.replace(rollout, devices=devices), able, max(0, room))
    allowance = _allowance(rollout, wave, now)
    chosen = wanted[: allowance.count(len(wanted))]
    for name in chosen:
        told, compares = DeviceState.ASSIGNED, bool(rollout.plan.shadow) and devices[name].can_shadow
        devices[name] = msgspec.structs.replace(
            devices[name], state=told, assigned_at=now, at=now, wave=wave, shadowing=compares
        )
    settled = _with_control(msgspec.structs.replace(rollout, wave=wave, devices=devices), now)
    if rollout.plan.per_hour and (chosen or (rollout.allowance and rollout.allowance.is_ahead(now))):
        settled = msgspec.structs.replace(settled, allowance=allowance.taken(len(chosen)))
    left = len(wanted) - len(chosen)
    more_at = allowance.taken(len(chosen)).ready_at(left) if left else None
    return _ended(settled, tuple(Assign(name) for name in (*ready, *chosen)), now, more_at)


def _able(rollout: Rollout, wave: int, pending: list[str]) -> list[str]:
    """The pending devices that a wave may add: of canaries, or of a wave that is a filter, only those that match.

    Where none of them is left in the rollout, the wave takes others, so that none begins that no device has shown.
    """
    plan, devices = rollout.plan, rollout.devices
    canaries = plan.canaries is not None
    if plan.waves[wave].cohort is None and not (canaries and wave == 0):
        return pending
    ranks = {name: devices[name].chosen for name in pending}
    able = [
        name for name, rank in ranks.items() if devices[name].canary or (rank is not None and rank <= wave - canaries)
    ]
    mine = any(one.assigned_at and one.wave == wave and one.state not in OUTSIDE for one in devices.values())
    return able if able or mine else pending


def _allowance(rollout: Rollout, wave: int, now: float) -> Allowance:
    """How many devices may get the assignment now, at the rate of a wave."""
    rate = wave_rate(rollout.plan.per_hour, rollout.plan.ramp, wave)
    before = rollout.allowance
    return (Allowance(rate, before.tokens, before.counted) if before else Allowance.start(rate)).at(now)


def _with_control(rollout: Rollout, now: float) -> Rollout:
    """Note as a decision where the control cohort that the plan asks for becomes too small, or large enough again."""
    if rollout.plan.control != COHORT:
        return rollout
    left = controls(rollout.devices)
    without = left < MIN_CONTROLS
    if without is rollout.without_control:
        return rollout
    reason = f"gates have a control cohort: {left} devices run the old version and report"
    if without:
        reason = (
            f"gates have no control cohort from wave {rollout.wave + 1} on: {left} devices of later waves run the old "
            f"version and report, at least {MIN_CONTROLS} must; each device is compared with its own past only"
        )
    return msgspec.structs.replace(decided(rollout, RolloutState.RUNNING, now, reason=reason), without_control=without)


def _next_devices(rollout: Rollout, pending: list[str], room: int) -> list[str]:
    """The devices of a wave: canaries first, then those of waves that are filters.

    Those that cannot compare, where the plan asks for it, come last, when nobody compares any more.
    """

    def rank(name: str) -> tuple[bool, float]:
        one = rollout.devices[name]
        return not one.canary, math.inf if one.chosen is None else one.chosen

    order = sorted(wave_order(rollout.id, pending), key=rank)
    if not rollout.plan.shadow:
        return order[:room]
    able = [name for name in order if rollout.devices[name].can_shadow]
    comparing = any(one.shadowing and one.state is DeviceState.ASSIGNED for one in rollout.devices.values())
    return able[:room] if able or comparing else order[:room]


def _ended(rollout: Rollout, effects: tuple[Effect, ...], now: float, more_at: float | None) -> RolloutStep:
    """The step, after which the rollout goes on, stops or has finished; `more_at` is when its rate allows devices."""
    due = [at for p in rollout.devices.values() if (at := deadline(p, rollout.plan)) is not None]
    soaks_until = _soaks_until(rollout, rollout.wave)
    if soaks_until > now and _wave_succeeded(rollout, rollout.wave):
        due.append(soaks_until)
    if more_at is not None:
        due.append(more_at)
    if due:
        return RolloutStep(rollout, effects, wake_at=min(due))
    if not _wave_succeeded(rollout, rollout.wave):
        share = rollout.plan.success_threshold
        reason = f"wave {rollout.wave + 1} ended with less than {share:.0%} of its devices succeeded"
        if not wave_judged(rollout, rollout.wave):
            reason = f"wave {rollout.wave + 1} reached no device: all have waited for too long"
        stopped = _stop(rollout, reason, now)
        return RolloutStep(stopped.state, (*effects, *stopped.effects))
    return RolloutStep(decided(rollout, RolloutState.FINISHED, now), effects)


def _is_approved(rollout: Rollout, wave: int) -> bool:
    """True if a wave may start; with ``start``, the approval of the first one holds for all."""
    approval = rollout.plan.approval
    return not approval or rollout.approved > (wave if approval == BEFORE_WAVES else 0)


def _await_approval(rollout: Rollout, now: float) -> RolloutStep:
    due = [at for p in rollout.devices.values() if (at := deadline(p, rollout.plan)) is not None]
    waiting = msgspec.structs.replace(rollout, awaits_approval=True)
    return RolloutStep(waiting, wake_at=min(due, default=None))


def _stop(rollout: Rollout, reason: str, now: float) -> RolloutStep:
    """Pause, or end the rollout and take back every assignment, as the plan says."""
    if rollout.plan.on_failure != RETURN:
        return RolloutStep(decided(rollout, RolloutState.PAUSED, now, reason=reason, itself=True))
    stopped = decided(rollout, RolloutState.ABORTED, now, reason=reason, itself=True)
    assigned = sorted(name for name, progress in rollout.devices.items() if progress.state not in UNASSIGNED)
    return RolloutStep(stopped, tuple(Return(name) for name in assigned))


def _returns(rollout: Rollout) -> bool:
    """True if the rollout has ended itself and takes every assignment back."""
    return rollout.stopped_itself and rollout.plan.on_failure == RETURN


def _soaks_until(rollout: Rollout, wave: int) -> float:
    """Until when a wave is watched, in wall clock seconds: its time begins with the last success that it needed."""
    if not rollout.plan.soak_seconds:
        return 0.0
    judged = wave_judged(rollout, wave)
    succeeded = sorted(p.at for p in judged if p.state is DeviceState.SUCCEEDED)
    counted = succeeded[: needed(rollout, len(judged))]
    return max(counted, default=0.0) + rollout.plan.soak_seconds


def _too_many_failures(rollout: Rollout) -> str:
    plan = rollout.plan
    neither = (DeviceState.WAITING, DeviceState.NOT_REACHED, DeviceState.CANCELLED)
    judged = [p for p in rollout.devices.values() if p.assigned_at and not p.excused and p.state not in neither]
    failed = [p for p in judged if p.state is DeviceState.FAILED]
    if len(failed) < plan.min_failures or len(failed) <= plan.error_threshold * len(judged):
        return ""
    return (
        f"{len(failed)} of {len(judged)} assigned devices failed ({len(failed) / len(judged):.0%}), "
        f"more than the error threshold of {plan.error_threshold:.0%}"
    )


def wave_judged(rollout: Rollout, wave: int) -> list[DeviceProgress]:
    """The devices of a wave whose success counts: not those that were not reached, or whose failure is accepted."""
    unjudged = (*UNASSIGNED, *OUTSIDE, DeviceState.NOT_REACHED)
    return [p for p in rollout.devices.values() if p.wave == wave and p.state not in unjudged and not p.excused]


def _wave_succeeded(rollout: Rollout, wave: int) -> bool:
    """True if the next wave may start: enough devices of this one have succeeded.

    With a threshold of 0 no success is needed, but each device must have an outcome. A wave that reached nobody has
    shown nothing; only the last one may end so, where an earlier wave has succeeded.
    """
    judged = wave_judged(rollout, wave)
    if not judged:
        unreached = [p for p in rollout.devices.values() if p.state is DeviceState.NOT_REACHED and p.wave == wave]
        last = wave == len(rollout.plan.waves) - 1
        proven = last and any(p.state is DeviceState.SUCCEEDED for p in rollout.devices.values())
        return proven or all(p.excused for p in unreached)
    if not rollout.plan.success_threshold:
        return not any(p.state in IN_FLIGHT for p in judged)
    succeeded = sum(progress.state is DeviceState.SUCCEEDED for progress in judged)
    return succeeded >= needed(rollout, len(judged))


def needed(rollout: Rollout, judged: int) -> int:
    """How many of a wave's devices must succeed before the next wave."""
    return max(1, math.ceil(rollout.plan.success_threshold * judged - 1e-9))
