"""A rollout as text for people, and as a map for ``--json``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from edgekit.bounds import MAX_DATE
from edgekit.cli.common.console import printable
from edgekit.rollout.values import DeviceProgress, DeviceState, Rollout, RolloutState


def count_of_devices(count: int) -> str:
    """For example ``1 device`` or ``3 devices``."""
    return f"{count} device{'' if count == 1 else 's'}"


def time_text(seconds: float) -> str:
    """Wall clock seconds as local date and time; a dash where there is none."""
    if not 0 < seconds < MAX_DATE:
        return "-"
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def status_lines(rollout: Rollout) -> list[str]:
    """The rollout's last decision and its wave, then one line for each device."""
    decision = rollout.decision
    since = f" since {time_text(decision.at)}" if decision else ""
    reason = f": {printable(rollout.reason)}" if rollout.reason else ""
    waves = ", ".join(wave.text for wave in rollout.plan.waves)
    lines = [f"rollout {rollout.id} of {rollout.model} {rollout.version} is {rollout.state.value}{since}{reason}"]
    if rollout.fault:
        lines.append(f"unreadable: {printable(rollout.fault)}")
    if decision and rollout.state is not RolloutState.RUNNING and decision.counts != _present(rollout):
        lines.append(f"at that time {_counts_text(decision.counts)}")
    lines.append(f"wave {rollout.wave + 1} of {len(rollout.plan.waves)} ({waves}); {counts_line(rollout)}")
    width = max((len(name) for name in rollout.devices), default=0)
    for name, progress in sorted(rollout.devices.items()):
        lines.append(f"  {name:<{width}}  {progress.state.name:<9}  {device_text(rollout, progress)}".rstrip())
    return lines


def device_text(rollout: Rollout, progress: DeviceProgress) -> str:
    """Why the device is in its state, and since when; printable."""
    reason = printable(progress.reason)
    if progress.state is DeviceState.WAITING:
        return f"{reason}, since {time_text(progress.waiting_since)}"
    if not progress.late:
        return reason
    before = progress.verdict.name if progress.verdict else ""
    then = f"was {before} {time_text(progress.verdict_at)}"
    if progress.verdict_reason:
        then += f": {printable(progress.verdict_reason)}"
    aborted = rollout.state is RolloutState.ABORTED and progress.verdict in (DeviceState.ASSIGNED, DeviceState.WAITING)
    word = "activated before the abort" if aborted else "succeeded late"
    return f"{word}, reported {time_text(progress.at)} ({then})"


def counts_line(rollout: Rollout) -> str:
    """Devices by state, for example ``2 assigned, 1 succeeded``."""
    late = sum(progress.late for progress in rollout.devices.values())
    text = _counts_text(_present(rollout)) or "no devices yet"
    return f"{text} ({late} late)" if late else text


def _present(rollout: Rollout) -> dict[str, int]:
    return {state: count for state, count in rollout.counts().items() if count}


def _counts_text(counts: dict[str, int]) -> str:
    names = {state.value: state.name.lower().replace("_", " ") for state in DeviceState}
    return ", ".join(f"{counts[value]} {name}" for value, name in names.items() if counts.get(value))


def summary(rollout: Rollout, *, devices: bool = False) -> dict[str, Any]:
    """The rollout for ``--json``; with `devices`, each device too."""
    values: dict[str, Any] = {
        "id": rollout.id,
        "model": rollout.model,
        "version": rollout.version,
        "state": rollout.state.value,
        "reason": rollout.reason,
        "stopped_itself": rollout.stopped_itself,
        "wave": rollout.wave + 1,
        "waves": [wave.text for wave in rollout.plan.waves],
        "counts": rollout.counts(),
        "late": sum(progress.late for progress in rollout.devices.values()),
        "decisions": msgspec.to_builtins(rollout.decisions),
        "unreadable": rollout.fault,
    }
    if devices:
        values["devices"] = {name: _device(progress) for name, progress in rollout.devices.items()}
    return values


def _device(progress: DeviceProgress) -> dict[str, Any]:
    verdict = None
    if progress.verdict is not None:
        verdict = {"state": progress.verdict.value, "at": progress.verdict_at, "reason": progress.verdict_reason}
    return {
        "state": progress.state.value,
        "reason": progress.reason,
        "digest": progress.digest,
        "told_at": progress.assigned_at,
        "at": progress.at,
        "waiting_since": progress.waiting_since,
        "late": progress.late,
        "verdict": verdict,
    }
