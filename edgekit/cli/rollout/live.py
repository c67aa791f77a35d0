"""The lines of `edgekit rollout watch` on a terminal: waves that fill, the time left, and devices to look at."""

from __future__ import annotations

import textwrap

from edgekit.cli.common.console import printable
from edgekit.cli.rollout.text import counts_of, device_text, time_text
from edgekit.rollout.gate_watch import gate_views
from edgekit.rollout.holding import holding_text
from edgekit.rollout.progress import duration, gate_text, seconds_left, wave_progress
from edgekit.rollout.values import IN_FLIGHT, DeviceProgress, DeviceState, Rollout

BAR_WIDTH = 30
NEEDS_A_LOOK = (DeviceState.FAILED, DeviceState.WAITING, DeviceState.NOT_REACHED)
BLOCKS, ASCII = "█▒·", "#=."  # succeeded, has the assignment, has not


def live_lines(rollout: Rollout, now: float, *, height: int, width: int = 80, signs: str = BLOCKS) -> list[str]:
    """The rollout in at most `height` lines, whatever the number of its devices.

    Args:
        rollout: The rollout with its devices.
        now: Wall clock seconds.
        height, width: Lines and columns of the terminal.
        signs: What bars are made of.
    """
    decision = rollout.decision
    since = f" since {time_text(decision.at)}" if decision else ""
    reason = f": {printable(rollout.reason)}" if rollout.reason else ""
    left = seconds_left(rollout, now)
    rest = f", about {duration(left)} left" if left is not None else ""
    lines = [f"rollout {rollout.id} of {rollout.model} {rollout.version} is {rollout.state.value}{since}{reason}{rest}"]
    if rollout.fault:
        lines.append(f"unreadable: {printable(rollout.fault)}")
    lines += _wave_lines(rollout, signs)
    lines.append(counts_of(rollout))
    if holding := holding_text(rollout, now):
        lines += textwrap.wrap(printable(holding), max(20, width - 1))
    lines += [gate_text(view) for view in gate_views(rollout)]
    found = [(name, one) for name, one in sorted(rollout.devices.items()) if _needs_a_look(one)]
    room = max(1, height - len(lines) - 2)
    column = max((len(name) for name, _ in found[:room]), default=0)
    for name, progress in found[:room]:
        lines.append(f"  {name:<{column}}  {progress.state.name:<11}  {device_text(rollout, progress)}".rstrip())
    if len(found) > room:
        lines.append(f"  and {len(found) - room} more; all: edgekit rollout status {rollout.id}")
    return lines


def _needs_a_look(progress: DeviceProgress) -> bool:
    return progress.state in NEEDS_A_LOOK or (progress.shadowing and progress.state in IN_FLIGHT)


def _wave_lines(rollout: Rollout, signs: str) -> list[str]:
    waves = wave_progress(rollout.plan, rollout.wave, rollout.counts())
    width = max(len(one.text) for one in waves)
    members: dict[int, list[DeviceProgress]] = {}
    for progress in rollout.devices.values():
        if progress.assigned_at:
            members.setdefault(progress.wave, []).append(progress)
    lines = []
    for index, wave in enumerate(waves):
        mine = members.get(index, [])
        succeeded = sum(one.state is DeviceState.SUCCEEDED for one in mine)
        flying = sum(one.state in IN_FLIGHT for one in mine)
        size = max(wave.size, len(mine))
        full = round(BAR_WIDTH * succeeded / size) if size else 0
        half = min(BAR_WIDTH - full, round(BAR_WIDTH * flying / size)) if size else 0
        bar = signs[0] * full + signs[1] * half + signs[2] * (BAR_WIDTH - full - half)
        mark = ">" if index == rollout.wave and not rollout.ended else " "
        lines.append(f"{mark} wave {index + 1}  {wave.text:>{width}}  {bar}  {succeeded} of {size} succeeded")
    return lines
