"""`edgekit alarm`: alarms of devices, from their telemetry."""

from __future__ import annotations

import time

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table, printable
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import Whole
from edgekit.cli.rollout.text import time_text


@click.group()
def alarm() -> None:
    """List alarms of devices (latency, drift, errors, heat), and end those of drift.

    \b
    Examples:
      edgekit alarm list
      edgekit alarm end pi-1
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
        found = state.telemetry.alarms(device, ended=everything, limit=limit)
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
                "open" if one.ended is None else time_text(one.ended),
                printable(one.message),
            )
            for one in found
        ]
        print_table(("device", "model", "alarm", "since", "ended", "found"), rows)


@alarm.command(name="end")
@click.argument("device", metavar="DEVICE")
@click.option("--model", default="", metavar="NAME", help="Only alarms of this model.")
@click.option("--kind", default="", metavar="KIND", help="Only this alarm, such as drift.input.x.")
@json_option
def end(device: str, model: str, kind: str, as_json: bool) -> None:
    """End open alarms of drift that you have looked into.

    The device raises the alarm again only after the drift has ended there and has begun anew.

    \b
    Example:
      edgekit alarm end pi-1 --model digits
    """
    with fleet_state(control_settings()) as state:
        state.devices.get(device)
        kinds = state.drift.end(device, model, kind, time.time())
    if as_json:
        print_json({"device": device, "ended": kinds})
    else:
        note(f"Ended for {device}: {', '.join(map(printable, kinds))}.")
