"""How far a rollout is: what each wave has reached, and an estimate of the time left. Pure rules."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

import msgspec

from edgekit.rollout.allowance import wave_rate
from edgekit.rollout.gate_watch import GateView, control_text
from edgekit.rollout.gates import AGREEMENT
from edgekit.rollout.plan import RolloutPlan
from edgekit.rollout.values import OUTSIDE, DeviceProgress, DeviceState, Rollout, RolloutState

_UNITS = ((86_400.0, "day"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
MIN_FINISHED = 3  # so many devices of a wave must have succeeded before an estimate is made from them


class WaveProgress(msgspec.Struct, frozen=True):
    """One wave.

    Attributes:
        text: Its size, as people write it.
        limit: Number of devices that may have the assignment once it has started, counted from the start.
        size: Number of devices that it adds.
        assigned: Of these, those that have the assignment.
        started: True once it is the current wave or an earlier one.
    """

    text: str
    limit: int
    size: int
    assigned: int
    started: bool


def counts_text(counts: Mapping[str, int], late: int = 0) -> str:
    """Devices by state, for example ``2 assigned, 1 succeeded``; `late` of them succeeded late."""
    names = {state.value: state.name.lower().replace("_", " ") for state in DeviceState}
    text = ", ".join(f"{counts[value]:,} {name}" for value, name in names.items() if counts.get(value))
    return (text or "no devices yet") + (f" ({late:,} late)" if late else "")


def duration(seconds: float) -> str:
    """For example ``40 s``, ``12 min``, ``3 h`` or ``2 days``."""
    for unit, name in _UNITS:
        if seconds >= unit:
            count = int(seconds / unit)
            return f"{count} {name}{'s' if name == 'day' and count > 1 else ''}"
    return "0 s"


def count_of_devices(count: int) -> str:
    """For example ``1 device`` or ``3 devices``."""
    return f"{count} device{'' if count == 1 else 's'}"


def gate_text(view: GateView) -> str:
    """The evidence of a gate for people, for example ``gate 'outcome drop <= 0': 90.0% before, 85.1% now, ...``."""
    is_agreement = view.gate.startswith(AGREEMENT)
    if not view.pairs:
        found = "has compared an input yet" if is_agreement else "has reported observations of both models yet"
        if view.control is not None:
            found = "with the new model could be compared with a control cohort yet, which needs five that report"
        return f"gate '{view.gate}': no device {found}"
    verdict = "accepted by an operator" if view.failed and view.accepted else "failed" if view.failed else "open"
    apart = f", {count_of_devices(view.dropped)} set apart" if view.dropped else ""
    moved = f"{view.baseline:.1%} before, {view.candidate:.1%} now, {view.pairs} pairs"
    if view.control is not None:
        moved += control_text(view.control)
    if is_agreement:
        moved = f"{view.candidate:.1%} of the answers agree, {view.pairs} inputs"
    return (
        f"gate '{view.gate}': {moved} of "
        f"{count_of_devices(view.devices)}{apart}; evidence {view.evidence:.3g} of {view.limit:g}: {verdict}"
    )


def wave_progress(plan: RolloutPlan, wave: int, counts: Mapping[str, int]) -> list[WaveProgress]:
    """The waves of a rollout.

    Args:
        plan: Its plan.
        wave: Index of its current wave.
        counts: Its devices by state.
    """
    eligible = sum(counts.values()) - sum(counts.get(state.value, 0) for state in OUTSIDE)
    unassigned = counts.get(DeviceState.PENDING.value, 0) + counts.get(DeviceState.NOT_REACHED.value, 0)
    assigned = eligible - unassigned
    found, before = [], 0
    for index, one in enumerate(plan.waves):
        limit = one.limit(eligible)
        size = max(0, limit - before)
        found.append(WaveProgress(one.text, limit, size, min(size, max(0, assigned - before)), index <= wave))
        before = max(before, limit)
    return found


def seconds_left(rollout: Rollout, now: float) -> float | None:
    """An estimate of the seconds until a running rollout ends; None where too little is known.

    Each wave that has not ended takes as long as a typical one: as the waves before it, or, in the first one, as the
    90 % fastest of its devices. Waits on purpose and pauses are not foreseen.

    Args:
        rollout: The rollout with its devices.
        now: Wall clock seconds.
    """
    if rollout.state is not RolloutState.RUNNING:
        return None
    waves: dict[int, list[DeviceProgress]] = {}
    for progress in rollout.devices.values():
        if progress.assigned_at:
            waves.setdefault(progress.wave, []).append(progress)
    current = waves.get(rollout.wave, [])
    if not current:
        return None
    durations = [
        max(0.0, waves[after][0].assigned_at - min(one.assigned_at for one in waves[before]))
        for before, after in zip(sorted(waves), sorted(waves)[1:], strict=False)
    ]
    typical = statistics.fmean(durations) if durations else _device_seconds(current)
    if typical is None:
        return None
    begun = min(one.assigned_at for one in current)
    open_devices = any(one.state is DeviceState.ASSIGNED for one in current)
    rest = max(0.0, typical - (now - begun)) if open_devices else 0.0
    return max(rest + typical * (len(rollout.plan.waves) - 1 - rollout.wave), _seconds_of_rate(rollout))


def rate_text(rollout: Rollout) -> str:
    """The rate of the current wave for people, for example ``at most 60 devices an hour``; empty without one."""
    plan = rollout.plan
    if not plan.per_hour or rollout.ended:
        return ""
    rate = wave_rate(plan.per_hour, plan.ramp, rollout.wave)
    return f"at most {rate:g} {'device' if rate == 1 else 'devices'} an hour"


def _seconds_of_rate(rollout: Rollout) -> float:
    """The time that the plan's rate needs for the devices without the assignment; 0 without a rate."""
    plan, seconds = rollout.plan, 0.0
    if not plan.per_hour:
        return seconds
    waves = wave_progress(plan, rollout.wave, rollout.counts())
    for index, wave in enumerate(waves[rollout.wave :], rollout.wave):
        seconds += (wave.size - wave.assigned) * 3600 / wave_rate(plan.per_hour, plan.ramp, index)
    return seconds


def _device_seconds(devices: Iterable[DeviceProgress]) -> float | None:
    times = sorted(
        one.at - one.assigned_at for one in devices if one.state is DeviceState.SUCCEEDED and one.at > one.assigned_at
    )
    if len(times) < MIN_FINISHED:
        return None
    return times[min(len(times) - 1, int(len(times) * 0.9))]
