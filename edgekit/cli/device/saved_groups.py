"""`edgekit device group`: names for filters."""

from __future__ import annotations

import time

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table, usage
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.selection import parse_cohort, with_groups
from edgekit.rollout.cohort import Cohort


@click.group()
def group() -> None:
    """Save filters as groups, which other filters can name.

    \b
    Examples:
      edgekit device group save canaries 'label.ring == 0 and online'
      edgekit device list --filter 'group(canaries)'
    """


@group.command()
@click.argument("name")
@click.argument("filter_text", metavar="FILTER")
@json_option
def save(name: str, filter_text: str, as_json: bool) -> None:
    """Save FILTER as the group NAME; an existing group of this name is replaced.

    \b
    Example:
      edgekit device group save canaries 'label.ring == 0'
    """
    parse_cohort((), (), filter_text)
    settings = control_settings()
    with fleet_state(settings) as state:
        now = time.time()
        with usage():
            before = state.groups.save(name, filter_text, now)
        count = state.devices.count(
            now, settings.offline_after_seconds, with_groups(state, Cohort(filter=f"group({name})"))
        )
    if as_json:
        print_json({"name": name, "filter": filter_text, "devices": count, "before": before})
        return
    note(f"group {name} {'replaced' if before else 'saved'}; it has {count} device{'' if count == 1 else 's'} now")


@group.command(name="list")
@json_option
def list_groups(as_json: bool) -> None:
    """List the saved groups.

    \b
    Example:
      edgekit device group list
    """
    with fleet_state(control_settings()) as state:
        groups = state.groups.all()
    if as_json:
        print_json(groups)
    elif groups:
        print_table(("group", "filter"), [(one.name, one.filter) for one in groups])
    else:
        note("No group is saved. Save one: edgekit device group save NAME FILTER")


@group.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the group NAME. Rollouts that used it keep its filter.

    \b
    Example:
      edgekit device group remove canaries
    """
    with fleet_state(control_settings()) as state, usage():
        removed = state.groups.remove(name, time.time())
    note(f"group {name} removed; its filter was: {removed.filter}")
