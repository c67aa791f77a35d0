"""Judges one device in a rollout by its report and the clock. Pure rules; `machine` decides about the rollout."""

from __future__ import annotations

import msgspec

from edgekit.bounds import CLOCKS_DIFFER_SECONDS
from edgekit.mqtt.messages import Outcome, Running, Waiting
from edgekit.rollout.plan import RolloutPlan
from edgekit.rollout.values import IN_FLIGHT, UNASSIGNED, DeviceProgress, DeviceState, DeviceStatus

FAILURES = ("failed", "rolled-back", "refused")
ROLLED_BACK = "rolled-back"
SILENT = "silent"
COMPARING = "SHADOWING"  # as devices report it
SETTLED = ("IDLE", "CLEANING")  # what runs is committed: only files that are no longer needed are removed
MAX_REASON = 500
MAX_WAITING_REASON = 63


def judge(progress: DeviceProgress, status: DeviceStatus, now: float) -> DeviceProgress:
    """The device's progress after its last report, while the rollout has not ended.

    Args:
        progress: Its progress before.
        status: Its last report.
        now: Wall clock seconds.
    """
    failure = _failure(progress.digest or status.digest, status)
    if progress.state is DeviceState.CANCELLED:
        return progress
    if progress.state in UNASSIGNED:
        if not status.digest:
            return DeviceProgress(DeviceState.SKIPPED, reason="the model has no bundle for its target")
        at = failure.at if failure else None
        canary = progress.canary or status.canary
        return DeviceProgress(
            DeviceState.PENDING,
            digest=status.digest,
            old_outcome=at,
            canary=canary,
            chosen=progress.chosen if status.chosen is None else status.chosen,
            can_shadow=progress.can_shadow or status.can_shadow,
            old_shadow=_old_shadow(status.running),
            observed=progress.observed if progress.digest == status.digest else None,
        )
    if _runs(progress, status):
        return changed(progress, DeviceState.SUCCEEDED, now, excused=False)
    if failure and failure.at != progress.old_outcome:
        return changed(progress, DeviceState.FAILED, now, _text(failure), old_outcome=failure.at)
    return _waited(progress, status, now) if progress.state in IN_FLIGHT else progress


def judge_late(progress: DeviceProgress, status: DeviceStatus, now: float, *, returns: bool = False) -> DeviceProgress:
    """As `judge`, after the end of the rollout: only what the device runs counts, and no device is assigned.

    Args:
        progress, status, now: As `judge`.
        returns: The rollout has taken back the assignment of every device.
    """
    if progress.state in (*UNASSIGNED, DeviceState.CANCELLED):
        return progress
    if returns and _runs_another(progress, status):
        return changed(progress, DeviceState.RETURNED, now, late=True)
    if _runs(progress, status):
        return changed(progress, DeviceState.SUCCEEDED, now, late=True)
    failure = _failure(progress.digest, status)
    after = failure is not None and failure.result == ROLLED_BACK and failure.at != progress.old_outcome
    if failure and after and progress.state is DeviceState.SUCCEEDED:
        return changed(progress, DeviceState.FAILED, now, f"after the end, {_text(failure)}", late=True)
    return progress


def after_deadline(progress: DeviceProgress, plan: RolloutPlan, now: float) -> DeviceProgress:
    """The device's progress at `now` (wall clock seconds), if it reports nothing more."""
    due = deadline(progress, plan)
    if due is None or now < due:
        return progress
    if progress.state is DeviceState.WAITING:
        reason = f"it waits ({progress.reason}), for longer than {plan.max_wait_seconds:g} s"
        after = changed(progress, DeviceState.NOT_REACHED, now, reason)
        return msgspec.structs.replace(after, waited=progress.waited + now - progress.waiting_since, waiting_since=0.0)
    limit = plan.device_deadline_seconds + (plan.shadow_seconds if progress.shadowing else 0.0)
    reason = f"{SILENT}: the device reported neither success nor failure within {limit:g} s"
    return changed(progress, DeviceState.FAILED, now, reason)


def set_right(progress: DeviceProgress, now: float) -> DeviceProgress:
    """The device's progress at `now` (wall clock seconds), where a clock that was ahead has noted it.

    Times that are still to come become `now`: its time, its wait and the soak of its wave begin again, instead of
    lasting for as long as the clock was ahead.
    """
    times = {name: getattr(progress, name) for name in ("assigned_at", "at", "waiting_since")}
    ahead = {name: now for name, at in times.items() if at > now + CLOCKS_DIFFER_SECONDS}
    return msgspec.structs.replace(progress, **ahead) if ahead else progress


def _old_shadow(running: Running | None) -> int | None:
    """The comparison that an unassigned device has reported and has ended; one that goes on will count."""
    if running is None or running.shadow is None or running.state == COMPARING:
        return None
    return running.shadow.run


def has_compared(progress: DeviceProgress) -> bool:
    """True where the device has ended its comparison of the new model with its active one."""
    return progress.shadow is not None and bool(progress.shadow.ended)


def deadline(progress: DeviceProgress, plan: RolloutPlan) -> float | None:
    """When the device's time is over, in wall clock seconds; None where no time runs. Waits do not count for it."""
    if progress.state is DeviceState.ASSIGNED and progress.shadowing:
        if has_compared(progress):
            return None  # it waits for the others of its wave
        return progress.assigned_at + progress.waited + plan.shadow_seconds + plan.device_deadline_seconds
    if progress.state is DeviceState.ASSIGNED:
        return progress.assigned_at + progress.waited + plan.device_deadline_seconds
    if progress.state is DeviceState.WAITING:
        return progress.waiting_since + plan.max_wait_seconds - progress.waited
    return None


def restarted(progress: DeviceProgress, now: float) -> DeviceProgress:
    """The device's progress after an operator resumed the rollout: its time starts again, its failure is accepted."""
    if progress.state in IN_FLIGHT:
        since = now if progress.state is DeviceState.WAITING else 0.0
        return msgspec.structs.replace(progress, assigned_at=now, waited=0.0, waiting_since=since)
    if progress.state in (DeviceState.FAILED, DeviceState.NOT_REACHED):
        return msgspec.structs.replace(progress, excused=True)
    return progress


def retried(progress: DeviceProgress, now: float) -> DeviceProgress:
    """The progress of a device that failed or was not reached, and gets the assignment again."""
    told = DeviceState.ASSIGNED
    fresh = msgspec.structs.replace(progress, state=told, assigned_at=now, at=now, reason="", excused=False)
    if progress.shadow is not None and progress.shadow.compared:  # an operator has decided, in spite of the comparison
        fresh = msgspec.structs.replace(fresh, shadowing=False)
    return msgspec.structs.replace(
        fresh, waited=0.0, waiting_since=0.0, verdict=None, verdict_at=0.0, verdict_reason=""
    )


def changed(
    progress: DeviceProgress, state: DeviceState, now: float, reason: str = "", *, late: bool = False, **more: object
) -> DeviceProgress:
    """`progress` in another state; the first state that counted is kept as the verdict."""
    if progress.state is state:
        return msgspec.structs.replace(progress, reason=reason)
    if progress.verdict is None and (late or progress.state not in IN_FLIGHT):
        more |= {"verdict": progress.state, "verdict_at": progress.at, "verdict_reason": progress.reason}
    return msgspec.structs.replace(progress, state=state, reason=reason, at=now, waiting_since=0.0, **more)


def _waited(progress: DeviceProgress, status: DeviceStatus, now: float) -> DeviceProgress:
    """The progress of a device in flight, which may wait on purpose; adds up its waits."""
    waiting = _waiting(progress, status)
    if waiting is not None:
        reason = waiting.reason[:MAX_WAITING_REASON] or "no reason given"
        if progress.state is DeviceState.WAITING:
            return msgspec.structs.replace(progress, reason=reason)
        waits = DeviceState.WAITING
        return msgspec.structs.replace(progress, state=waits, reason=reason, at=now, waiting_since=now)
    if progress.state is DeviceState.ASSIGNED or status.running is None:
        return progress
    waited = progress.waited + max(0.0, now - progress.waiting_since)
    assigned = DeviceState.ASSIGNED
    return msgspec.structs.replace(progress, state=assigned, reason="", at=now, waiting_since=0.0, waited=waited)


def _waiting(progress: DeviceProgress, status: DeviceStatus) -> Waiting | None:
    """Why the device waits with this rollout's bundle; None if it does not, or waits with another bundle."""
    waiting = status.running.waiting if status.running else None
    return waiting if waiting is not None and waiting.digest in ("", progress.digest) else None


def _runs(progress: DeviceProgress, status: DeviceStatus) -> bool:
    running = status.running
    return running is not None and running.digest == progress.digest and running.state in SETTLED


def _runs_another(progress: DeviceProgress, status: DeviceStatus) -> bool:
    running = status.running
    return running is not None and running.digest not in ("", progress.digest) and running.state in SETTLED


def _failure(digest: str, status: DeviceStatus) -> Outcome | None:
    outcome = status.outcome
    return outcome if outcome and outcome.deployment == digest and outcome.result in FAILURES else None


def _text(outcome: Outcome) -> str:
    return ": ".join(part for part in (outcome.result, outcome.error, outcome.message) if part)[:MAX_REASON]
