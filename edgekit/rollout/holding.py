"""The devices that wait on purpose and so keep a rollout from its next wave or from its end. Pure rules."""

from __future__ import annotations

from collections import Counter

from edgekit.rollout.judging import deadline
from edgekit.rollout.machine import needed, wave_judged
from edgekit.rollout.progress import count_of_devices, duration
from edgekit.rollout.values import DeviceProgress, DeviceState, Rollout, RolloutState

MAX_REASON = 60
PAUSED = "paused"  # of a device whose fleet is paused


def holding_text(rollout: Rollout, now: float) -> str:
    """Which devices hold the rollout back because they wait on purpose, for how long at most, and how to go on.

    Empty where none does: others of the wave still work, the wave has succeeded without them, or the rollout does not
    run.

    Args:
        rollout: The rollout with its devices.
        now: Wall clock seconds.
    """
    if rollout.state is not RolloutState.RUNNING or rollout.fault or rollout.awaits_approval:
        return ""
    held, what = _held(rollout)
    if not held:
        return ""
    last = max(deadline(one, rollout.plan) or now for one in held.values())
    counted = Counter(one.reason[:MAX_REASON] for one in held.values())
    reasons = ", ".join(reason if len(counted) == 1 else f"{reason} {n}" for reason, n in counted.most_common(3))
    name = min(held)
    them, their = ("it", name) if len(held) == 1 else ("one of them", "DEVICE")
    whom = f"{name}, which waits" if len(held) == 1 else f"{count_of_devices(len(held))} that wait"
    ways = [f"To go on without {them}: edgekit rollout cancel {rollout.id} {their}"]
    if rollout.plan.consent:
        ways.append(f"to ask no user any more: edgekit rollout force {rollout.id}")
    if PAUSED in counted:
        ways.append("to end the pause of the fleet: edgekit fleet resume")
    left = duration(max(0.0, last - now))
    return f"{what} waits for {whom} on purpose ({reasons}); at most {left} more. {'; '.join(ways)}"


def _held(rollout: Rollout) -> tuple[dict[str, DeviceProgress], str]:
    """The devices that hold the rollout back, and what they hold back."""
    waiting = {name: one for name, one in rollout.devices.items() if one.state is DeviceState.WAITING}
    if rollout.wave == len(rollout.plan.waves) - 1:
        busy = (DeviceState.ASSIGNED, DeviceState.PENDING)
        rest = any(one.state in busy for one in rollout.devices.values())
        return ({} if rest else waiting), "the end of the rollout"
    judged = wave_judged(rollout, rollout.wave)
    may_succeed = sum(one.state in (DeviceState.SUCCEEDED, DeviceState.ASSIGNED) for one in judged)
    enough = needed(rollout, len(judged)) if rollout.plan.success_threshold else len(judged)
    if may_succeed >= enough:
        return {}, ""
    return {name: one for name, one in waiting.items() if one.wave == rollout.wave}, f"wave {rollout.wave + 2}"
