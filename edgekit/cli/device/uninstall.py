"""`edgekit device uninstall`: take a model off one device, or off all that a filter selects."""

from __future__ import annotations

import time

import click

from edgekit.cli.common.console import control_settings, dry_run_option, json_option, note, print_json
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.selection import parse_cohort, selection_options, with_groups
from edgekit.rollout.agent_needs import UNINSTALL, ignoring
from edgekit.rollout.progress import count_of_devices


@click.command()
@click.argument("model")
@click.argument("name", metavar="[ID]", default="")
@selection_options
@dry_run_option
@json_option
def uninstall(
    model: str,
    name: str,
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    filter_text: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take MODEL off the device ID, or off all devices that the options select.

    A device answers its open requests, then removes the model and its files. It goes on refusing older versions.
    Standing assignments do not give it the model again; a rollout does.

    \b
    Examples:
      edgekit device uninstall digits pi-1 --dry-run
      edgekit device uninstall digits --filter 'label.site == north'
    """
    cohort = parse_cohort(targets, labels, filter_text)
    if bool(name) == bool(cohort.text):
        raise click.UsageError("Name one device, or select devices with --filter, --target or --label.")
    settings = control_settings()
    with fleet_state(settings) as state:
        names = [name]
        if not name:
            cohort = with_groups(state, cohort)
            views = state.devices.views(time.time(), settings.offline_after_seconds, cohort=cohort)
            if not views:
                raise state.nobody(cohort)
            names = [view.device for view in views]
        found = state.uninstall.plan(model, names) if dry_run else state.uninstall.run(model, names, time.time())
        standing = [one.id for one in state.standing.all() if one.model == model]
    changed = [one for one in found if one.changes]
    if old := ignoring([UNINSTALL], {one.device: one.edgekit for one in changed}):
        note(old.message)
    if as_json:
        print_json(found)
        return
    does = "would be taken" if dry_run else "is taken"
    note(f"{model} {does} off {count_of_devices(len(changed))}: {', '.join(one.device for one in changed) or 'none'}")
    if asked := [one.device for one in found if one.asked]:
        note(f"asked before: {', '.join(asked)}")
    for number in standing:
        note(f"standing assignment {number} does not give it to these devices again")
