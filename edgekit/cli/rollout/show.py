"""`edgekit rollout status`, `list` and `watch`."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table, printable
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import ROLLOUT
from edgekit.cli.rollout.live import ASCII, BLOCKS, live_lines
from edgekit.cli.rollout.text import counts_of, status_lines
from edgekit.errors import NotFoundError, RefusedError
from edgekit.rollout.document import RolloutDocument, document
from edgekit.rollout.holding import holding_text
from edgekit.rollout.progress import counts_text
from edgekit.rollout.values import Rollout, RolloutState

if TYPE_CHECKING:
    from edgekit.state import FleetState

POLL_SECONDS = 0.3
NO_ASSIGNMENT_SECONDS = 10.0  # a running controller assigns the first wave sooner


@click.command()
@click.argument("number", metavar="[ID]", type=ROLLOUT, required=False)
@json_option
def status(number: int | None, as_json: bool) -> None:
    """Show a rollout and its devices; without ID, the newest rollout.

    \b
    Example:
      edgekit rollout status 3
    """
    with fleet_state(control_settings()) as state:
        rollout = _find(state, number)
    if as_json:
        print_json(document(rollout, devices=True))
    else:
        click.echo("\n".join(status_lines(rollout, time.time())))


@click.command(name="list")
@json_option
def list_command(as_json: bool) -> None:
    """List all rollouts, oldest first.

    \b
    Example:
      edgekit rollout list --json
    """
    with fleet_state(control_settings()) as state:
        rollouts = state.rollouts.documents()[::-1]
    if as_json:
        print_json(rollouts)
    elif rollouts:
        rows = [(r.id, r.model, r.version, _state(r), counts_text(r.counts, r.late), _reason(r)) for r in rollouts]
        print_table(("id", "model", "version", "state", "devices", "reason"), rows)
    else:
        note("There is no rollout yet. Start one: edgekit rollout start NAME VERSION")


@click.command()
@click.argument("number", metavar="[ID]", type=ROLLOUT, required=False)
@json_option
def watch(number: int | None, as_json: bool) -> None:
    """Show a rollout until it ends; exit 3 when it pauses itself or is aborted. Without ID, the newest rollout.

    On a terminal: its waves as they fill, an estimate of the time left, and the devices that failed or wait.

    \b
    Example:
      edgekit rollout watch
    """
    with fleet_state(control_settings()) as state:
        follow(state, _find(state, number).id, live=True, as_json=as_json)


def follow(state: FleetState, number: int, *, live: bool, as_json: bool) -> None:
    """Show a rollout until it ends or pauses itself.

    Args:
        state: The fleet's database.
        number: The rollout's id.
        live: On a terminal, replace the lines that were printed before.
        as_json: Print nothing but the end result, as JSON.

    Raises:
        RefusedError: it paused itself or was aborted.
    """
    shown: list[str] = []
    begun, warned = time.monotonic(), False
    while True:
        rollout = state.rollouts.get(number)
        if not as_json:
            shown = _show(rollout, shown, live=live)
        if rollout.ended or rollout.stopped_itself or rollout.fault:
            break
        assigned = any(progress.assigned_at for progress in rollout.devices.values())
        idle = rollout.state is RolloutState.RUNNING and not assigned
        if idle and not warned and time.monotonic() - begun > NO_ASSIGNMENT_SECONDS:
            note("no device has an assignment yet: is `edgekit controller run` running?")
            warned = True
        time.sleep(POLL_SECONDS)
    if as_json:
        print_json(document(rollout, devices=True))
    if rollout.state is not RolloutState.FINISHED:
        if rollout.fault:
            raise RefusedError(
                f"rollout {number} of {rollout.model} {rollout.version} cannot be read: {rollout.fault}",
                advice=f"End it: edgekit rollout abort {number}",
            )
        advice = f"To continue: edgekit rollout resume {number}. To end it: edgekit rollout abort {number}."
        raise RefusedError(
            f"rollout {number} of {rollout.model} {rollout.version} is {rollout.state.value}: {rollout.reason}",
            advice=advice if rollout.state is RolloutState.PAUSED else "",
        )


def _reason(rollout: RolloutDocument) -> str:
    """Why it does not go on; empty while it does."""
    awaits = rollout.awaits_approval and rollout.state == RolloutState.RUNNING.value
    waits = f"waits for: edgekit rollout approve {rollout.id}" if awaits else ""
    return rollout.reason or rollout.unreadable or waits


def _state(rollout: RolloutDocument) -> str:
    return f"{rollout.state} (unreadable)" if rollout.unreadable else rollout.state


def _find(state: FleetState, number: int | None) -> Rollout:
    if number is not None:
        return state.rollouts.get(number)
    newest = state.rollouts.documents(limit=1)
    if not newest:
        raise NotFoundError("there is no rollout yet", advice="Start one: edgekit rollout start NAME VERSION")
    return state.rollouts.get(newest[0].id)


def _show(rollout: Rollout, shown: list[str], *, live: bool) -> list[str]:
    """Print what changed; returns the lines that are printed now.

    With `live` on a terminal, the status replaces the lines in `shown`. Otherwise each change is one line.
    """
    if live and sys.stdout.isatty():
        size = shutil.get_terminal_size()
        signs = BLOCKS if "utf" in (sys.stdout.encoding or "").lower() else ASCII
        found = live_lines(rollout, time.time(), height=size.lines, width=size.columns, signs=signs)
        lines = [line[: size.columns - 1] for line in found]
        if lines != shown:
            click.echo((f"\x1b[{len(shown)}A\x1b[J" if shown else "") + "\n".join(lines))
        return lines
    line = f"{rollout.state.value} wave {rollout.wave + 1} of {len(rollout.plan.waves)}: {counts_of(rollout)}"
    holding = holding_text(rollout, time.time())
    held = [holding.partition("; at most")[0]] if holding else []  # without the time left, which changes
    if [line] != shown[:1]:
        click.echo(line)
    if held and held != shown[1:]:
        click.echo(printable(holding))
    return [line, *held]
