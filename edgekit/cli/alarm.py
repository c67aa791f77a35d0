"""`edgekit alarm`: alarms of devices, from their telemetry."""

from __future__ import annotations

import time

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table, printable
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import Whole
from edgekit.cli.rollout.text import time_text
from edgekit.state.fleet.alarms import MAX_REASON, Alarm


@click.group()
def alarm() -> None:
    """List alarms of devices (latency, drift, errors, heat), and end them.

    \b
    Examples:
      edgekit alarm list
      edgekit alarm end pi-1 --reason "lens cleaned"
    """


@alarm.command(name="list")
@click.option("--device", metavar="ID", help="Only alarms of this device.")
@click.option("--all", "everything", is_flag=True, help="Also alarms that have ended.")
@click.option("--limit", type=Whole(1, 100_000), default=500, show_default=True, help="Number of alarms.")
@json_option
def list_alarms(device: str | None, everything: bool, limit: int, as_json: bool) -> None:
    """List the open alarms, the newest first.

    An hour of a device is an alarm if it differs from the first 24 hours of the same bundle there, by more than chance
    explains and by an amount that matters. At most one hour in a million is a false alarm, for each signal.
    Alarms drift.* come from the device: what it sees differs from the calibration data of its bundle.

    \b
    Examples:
      edgekit alarm list
      edgekit alarm list --device pi-1 --all --json
    """
    with fleet_state(control_settings()) as state:
        if device is not None:
            state.devices.get(device)
        found = state.alarms.all(device, ended=everything, limit=limit)
    if as_json:
        print_json(found)
    elif not found:
        note("There is no alarm.")
    else:
        rows = [
            (
                one.device,
                one.model,
                printable(one.kind),
                time_text(one.since),
                _ended(one),
                printable(one.message),
            )
            for one in found
        ]
        print_table(("device", "model", "alarm", "since", "ended", "found"), rows)


def _ended(one: Alarm) -> str:
    """When it ended, and who ended it by hand and why."""
    if one.ended is None:
        return "open"
    who = f" by {printable(one.ended_by)}" if one.ended_by else ""
    return f"{time_text(one.ended)}{who}{f': {printable(one.reason)}' if one.reason else ''}"


@alarm.command(name="end")
@click.argument("device", metavar="DEVICE")
@click.option("--model", default="", metavar="NAME", help="Only alarms of this model.")
@click.option("--kind", default="", metavar="KIND", help="Only this alarm, such as errors or drift.input.x.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the alarm and the audit log.")
@json_option
def end(device: str, model: str, kind: str, reason: str, as_json: bool) -> None:
    """End open alarms of a device that you have looked into.

    An alarm is raised again only after what it found has ended by itself (the device says so of drift, a good hour of
    anything else) and has begun anew.

    \b
    Example:
      edgekit alarm end pi-1 --model digits --reason "lens cleaned"
    """
    if len(reason) > MAX_REASON or "\0" in reason:
        raise click.UsageError(f"--reason has {len(reason)} characters, expected at most {MAX_REASON}, without NUL.")
    with fleet_state(control_settings()) as state:
        state.devices.get(device)
        kinds = [one.kind for one in state.alarms.end(device, model, kind, reason, time.time())]
    if as_json:
        print_json({"device": device, "ended": kinds, "reason": reason})
    else:
        note(f"Ended for {device}: {', '.join(map(printable, kinds))}.")
