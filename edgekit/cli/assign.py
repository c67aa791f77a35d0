"""`edgekit assign`: standing assignments, which new devices get without a rollout."""

from __future__ import annotations

import time

import click

from edgekit.cli.common.console import (
    control_settings,
    dry_run_option,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
)
from edgekit.cli.common.fleet import fleet_state, registry_reader
from edgekit.cli.common.numbers import ROLLOUT, Number
from edgekit.cli.common.selection import parse_cohort, selection_options, with_groups
from edgekit.rollout.allowance import MAX_PER_HOUR


@click.group()
def assign() -> None:
    """Standing assignments: new, reset and returning devices get a model without a rollout.

    \b
    Examples:
      edgekit assign add digits --channel stable --per-hour 100
      edgekit assign list
    """


@assign.command()
@click.argument("model")
@click.option("--version", metavar="X.Y.Z", default="", help="A fixed version.")
@click.option("--channel", default="", help="The newest version that is promoted to this channel.")
@selection_options
@click.option(
    "--per-hour",
    type=Number(0, MAX_PER_HOUR),
    default=0.0,
    show_default=True,
    metavar="N",
    help="Devices that get it within an hour; 0 for no limit.",
)
@dry_run_option
@json_option
def add(
    model: str,
    version: str,
    channel: str,
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    filter_text: str,
    per_hour: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give MODEL to all devices of the selection that have nothing of it, now and in the future.

    Devices that have a version of the model keep it: rollouts change versions.

    \b
    Examples:
      edgekit assign add digits --version 1.0.0
      edgekit assign add digits --channel stable --filter 'label.site == north' --per-hour 100
    """
    if bool(version) == bool(channel):
        raise click.UsageError("Name either --version or --channel.")
    cohort = parse_cohort(targets, labels, filter_text)
    settings = control_settings()
    with needs_extra("controller"):
        from edgekit.controller.planning import standing_entries
    with fleet_state(settings) as state:
        cohort = with_groups(state, cohort)
        with registry_reader(settings) as reader:
            entries = standing_entries(reader, model, version, channel)
        now = time.time()
        if dry_run:
            count = state.devices.count(now, settings.offline_after_seconds, cohort)
            note(
                f"would give {model} to those of {count} selected devices that have nothing of it; targets: "
                f"{', '.join(f'{target} {entry.version}' for target, entry in entries.items())}"
            )
            return
        made = state.standing.add(
            model, entries, now=now, version=version, channel=channel, cohort=cohort, per_hour=per_hour
        )
    if as_json:
        print_json(made.summary)
        return
    note(f"standing assignment {made.id}: {made.text} for {cohort.text or 'all devices'}")


@assign.command(name="list")
@json_option
def list_standing(as_json: bool) -> None:
    """List the standing assignments; of two for the same model and device, the first one counts.

    \b
    Example:
      edgekit assign list
    """
    with fleet_state(control_settings()) as state:
        found = state.standing.all()
    if as_json:
        print_json([one.summary for one in found])
    elif found:
        rows = [
            (one.id, one.text, one.cohort.text or "all", f"{one.per_hour:g}" if one.per_hour else "-") for one in found
        ]
        print_table(("id", "gives", "to devices", "per hour"), rows)
    else:
        note("There is no standing assignment. Add one: edgekit assign add MODEL --channel C")


@assign.command()
@click.argument("number", metavar="ID", type=ROLLOUT)
def remove(number: int) -> None:
    """Remove the standing assignment ID. Devices keep what they have.

    \b
    Example:
      edgekit assign remove 1
    """
    with fleet_state(control_settings()) as state:
        removed = state.standing.remove(number, time.time())
    note(f"standing assignment {number} is removed; it gave {removed.text} to {removed.cohort.text or 'all devices'}")
