"""A rollout as text for people, and as a map for ``--json``."""

from __future__ import annotations

from typing import Any

from edgekit.cli.common.console import printable
from edgekit.rollout.machine import DeviceState, Rollout


def count_of_devices(count: int) -> str:
    """For example ``1 device`` or ``3 devices``."""
    return f"{count} device{'' if count == 1 else 's'}"


def status_lines(rollout: Rollout) -> list[str]:
    """The rollout's state and wave, then one line for each device."""
    reason = f": {printable(rollout.reason)}" if rollout.reason else ""
    waves = ", ".join(wave.text for wave in rollout.plan.waves)
    lines = [
        f"rollout {rollout.id} of {rollout.model} {rollout.version} is {rollout.state.value}{reason}",
        f"wave {rollout.wave + 1} of {len(rollout.plan.waves)} ({waves}); {counts_line(rollout)}",
    ]
    width = max((len(name) for name in rollout.devices), default=0)
    for name, progress in sorted(rollout.devices.items()):
        lines.append(f"  {name:<{width}}  {progress.state.name:<9}  {printable(progress.reason)}".rstrip())
    return lines


def counts_line(rollout: Rollout) -> str:
    """Devices by state, for example ``2 assigned, 1 succeeded``."""
    counts = {DeviceState(state).name: count for state, count in rollout.counts().items() if count}
    return ", ".join(f"{count} {state.lower()}" for state, count in counts.items()) or "no devices yet"


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
    }
    if devices:
        values["devices"] = {
            name: {"state": p.state.value, "reason": p.reason, "digest": p.digest, "told_at": p.assigned_at}
            for name, p in rollout.devices.items()
        }
    return values
