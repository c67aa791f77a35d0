"""`edgekit fleet`: pause and resume all changes of a fleet, and show its controllers."""

from __future__ import annotations

import time

import click
import msgspec

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table, printable
from edgekit.cli.common.fleet import fleet_state


@click.group()
def fleet() -> None:
    """Pause or resume every change of the fleet's devices, and show which controller leads.

    \b
    Examples:
      edgekit fleet status
      edgekit fleet pause --reason "broker moves tonight"
      edgekit fleet resume
    """


@fleet.command()
@click.option("--reason", default="", help="Reason, as `edgekit fleet status` and the audit log show it.")
@json_option
def pause(reason: str, as_json: bool) -> None:
    """Let no device begin a change. Installed models answer on; a change that has begun is finished.

    \b
    Example:
      edgekit fleet pause --reason "broker moves tonight"
    """
    _set(True, reason, as_json)


@fleet.command()
@json_option
def resume(as_json: bool) -> None:
    """Let devices begin changes again.

    \b
    Example:
      edgekit fleet resume
    """
    _set(False, "", as_json)


@fleet.command()
@json_option
def status(as_json: bool) -> None:
    """Show whether the fleet is paused, and its controllers: the leader, those that stand by, and silent ones.

    \b
    Example:
      edgekit fleet status --json
    """
    now = time.time()
    with fleet_state(control_settings()) as state:
        found, controllers = state.pause.get(), state.leaders.all(now)
        if as_json:
            print_json({**msgspec.structs.asdict(found), "controllers": controllers})
            return
        reason = f": {printable(found.reason)}" if found.reason else ""
        note(f"fleet {state.fleet} is paused{reason}" if found.paused else f"fleet {state.fleet} is not paused")
        if not controllers:
            note("no controller has been seen in the last day")
            return
        rows = [(one.name, one.role, f"{max(0.0, now - one.seen):.0f} s ago") for one in controllers]
        print_table(("CONTROLLER", "ROLE", "SEEN"), rows)


def _set(paused: bool, reason: str, as_json: bool) -> None:
    with fleet_state(control_settings()) as state:
        found = state.pause.set(paused, time.time(), reason=reason)
        if as_json:
            print_json(found)
        else:
            note(f"fleet {state.fleet} is {'paused' if paused else 'resumed'}; a running controller tells its devices")
