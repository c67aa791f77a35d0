"""A rollout as text for people."""

from __future__ import annotations

from datetime import datetime

from edgekit.bounds import MAX_DATE
from edgekit.cli.common.console import printable
from edgekit.rollout.gate_watch import gate_views
from edgekit.rollout.holding import holding_text
from edgekit.rollout.progress import counts_text, gate_text, rate_text
from edgekit.rollout.shadowing import shadow_text
from edgekit.rollout.values import DeviceProgress, DeviceState, Rollout, RolloutState


def time_text(seconds: float) -> str:
    """Wall clock seconds as local date and time; a dash where there is none."""
    if not 0 < seconds < MAX_DATE:
        return "-"
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def status_lines(rollout: Rollout, now: float) -> list[str]:
    """The rollout's last decision and its wave, then one line for each device."""
    decision = rollout.decision
    since = f" since {time_text(decision.at)}" if decision else ""
    reason = f": {printable(rollout.reason)}" if rollout.reason else ""
    waves = ", ".join(wave.text for wave in rollout.plan.waves)
    lines = [f"rollout {rollout.id} of {rollout.model} {rollout.version} is {rollout.state.value}{since}{reason}"]
    if rollout.fault:
        lines.append(f"unreadable: {printable(rollout.fault)}")
    if decision and rollout.state is not RolloutState.RUNNING and decision.counts != _present(rollout):
        lines.append(f"at that time {counts_text(decision.counts)}")
    if rollout.awaits_approval and rollout.state is RolloutState.RUNNING:
        lines.append(f"the next wave waits for: edgekit rollout approve {rollout.id}")
    lines += [gate_text(view) for view in gate_views(rollout)]
    rate = f", {rate_text(rollout)}" if rate_text(rollout) else ""
    lines.append(f"wave {rollout.wave + 1} of {len(rollout.plan.waves)} ({waves}){rate}; {counts_of(rollout)}")
    if holding := holding_text(rollout, now):
        lines.append(printable(holding))
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
        return "; ".join(part for part in (reason, printable(shadow_text(progress, rollout.plan))) if part)
    before = progress.verdict.name if progress.verdict else ""
    then = f"was {before} {time_text(progress.verdict_at)}"
    if progress.verdict_reason:
        then += f": {printable(progress.verdict_reason)}"
    aborted = rollout.state is RolloutState.ABORTED and progress.verdict in (DeviceState.ASSIGNED, DeviceState.WAITING)
    word = "activated before the abort" if aborted else "succeeded late"
    return f"{word}, reported {time_text(progress.at)} ({then})"


def counts_of(rollout: Rollout) -> str:
    """The devices of a rollout by state."""
    return counts_text(rollout.counts(), sum(progress.late for progress in rollout.devices.values()))


def _present(rollout: Rollout) -> dict[str, int]:
    return {state: count for state, count in rollout.counts().items() if count}
