"""`edgekit device list` and `edgekit device show`."""

from __future__ import annotations

import time
from typing import Any

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table, printable, usage
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import Whole
from edgekit.cli.common.selection import parse_cohort, selection_options, with_groups
from edgekit.cli.device.columns import (
    device_row,
    models_text,
    outcomes_text,
    parse_columns,
    presence_text,
)
from edgekit.cli.rollout.text import time_text
from edgekit.errors import SettingsError
from edgekit.health.fact_text import fact_text
from edgekit.health.summary import Summary
from edgekit.rollout.progress import count_of_devices
from edgekit.sketches.signals import ROUTES

FACT_WIDTH = 80
PAGE = 100


@click.command(name="list")
@selection_options
@click.option(
    "--limit", type=Whole(1, 1_000_000), metavar="N", help=f"Devices of a page [default: {PAGE}; with --json all]."
)
@click.option("--after", default="", metavar="ID", help="Begin after this device: the next page.")
@click.option("--all", "everything", is_flag=True, help="All devices on one page.")
@click.option(
    "--sort",
    default="name",
    show_default=True,
    metavar="KEY",
    help="name, target, enrolled or seen; with - before it in the reverse order.",
)
@click.option("--offset", type=Whole(0, 1_000_000_000), default=0, metavar="N", help="Leave out the first N devices.")
@click.option(
    "--columns",
    default="",
    metavar="LIST",
    help="Columns, separated by commas: device, target, presence, assigned, models, deployments, seen, enrolled, "
    "labels, label.KEY, fact.KEY, version(MODEL), digest(MODEL), state(MODEL), outcome(MODEL).",
)
@json_option
def list_command(
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    filter_text: str,
    limit: int | None,
    after: str,
    everything: bool,
    sort: str,
    offset: int,
    columns: str,
    as_json: bool,
) -> None:
    """List the devices with their models and the outcomes of their last deployments.

    \b
    Examples:
      edgekit device list --json
      edgekit device list --filter 'label.site in (north, west) and version(digits) < 2.0 and not online'
      edgekit device list --sort -seen --columns 'device,seen,label.site,version(digits)'
    """
    with usage():
        shown = parse_columns(columns)
        if after and sort != "name":
            raise SettingsError("--after needs a list by name", advice="With --sort, use --offset.")
    cohort = parse_cohort(targets, labels, filter_text)
    settings = control_settings()
    if limit is None and not as_json and not everything:
        limit = PAGE
    with fleet_state(settings) as state:
        cohort = with_groups(state, cohort)
        now, offline_after = time.time(), settings.offline_after_seconds
        one_more = None if limit is None else limit + 1
        page: Any = {"after": after, "offset": offset, "limit": one_more, "sort": sort}
        with usage():
            views = state.devices.views(now, offline_after, cohort=cohort, **page)
        more, views = limit is not None and len(views) > limit, views[:limit]
        total = (
            len(views)
            if limit is None and not after and not offset
            else state.devices.count(now, offline_after, cohort)
        )
        nothing = state.nobody(cohort) if not total and cohort.text else None
    if as_json:
        print_json(views)
    elif nothing is not None:
        note(f"{nothing}. {nothing.advice}")
    elif views:
        print_table(shown, [device_row(view, shown) for view in views])
        if more:
            onward = f"--after {views[-1].device}" if sort == "name" else f"--offset {offset + len(views)}"
            note(f"{len(views)} of {total} devices; the next page: {onward}")
    elif total:
        note(f"No device is on this page; the list has {count_of_devices(total)}.")
    else:
        note(f"No device is enrolled in fleet {settings.fleet}.")


@click.command()
@click.argument("name", metavar="ID")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one device: its last report, its assignment and its latest events.

    \b
    Example:
      edgekit device show pi-1
    """
    with fleet_state(control_settings()) as state:
        from edgekit.state.fleet.detail import describe_device

        found = describe_device(state, name, time.time())
    if as_json:
        print_json(found)
        return
    view, assigned = found.reported, found.assigned
    rows = [
        ("target", view.target),
        ("labels", ", ".join(f"{key}={value}" for key, value in view.labels.items()) or "-"),
        ("presence", presence_text(view)),
        *([("quarantine", view.quarantine)] if view.quarantine else []),
        ("models", models_text(view)),
        ("last deployments", outcomes_text(view)),
        ("assigned", ", ".join(f"{e.name} {e.version}" for e in assigned.entries.values()) or "-"),
        *([("uninstalled", ", ".join(assigned.uninstall))] if assigned.uninstall else []),
        ("assignment", f"version {assigned.version}, accepted {view.assignment}"),
    ]
    print_table((name, ""), [*rows, *((f"fact {key}", _short(value)) for key, value in sorted(view.facts.items()))])
    _print_summary(found.telemetry)
    for one in found.alarms:
        click.echo(f"alarm since {time_text(one.since)}: {one.model} {printable(one.kind)}: {printable(one.message)}")
    for event in found.events:
        text = " ".join(part for part in (event.kind, event.model, event.error, event.message) if part)
        click.echo(f"{time_text(event.at)}  {printable(text)}")


def _print_summary(summary: Summary) -> None:
    """Print the activity of the device in the last day, a line for each bundle."""
    if summary.bundles:
        rows = [
            (
                one.model,
                one.digest,
                str(one.requests),
                *(f"{one.routes.get(route, 0.0):.1%}" for route in ROUTES),
                *("-" if value is None else f"{value:.3g}" for value in (one.p50_ms, one.p95_ms, one.score)),
            )
            for one in summary.bundles
        ]
        print_table(("last 24 hours", "digest", "requests", *ROUTES, "p50 ms", "p95 ms", "score"), rows)
    if summary.temperature_celsius is not None:
        median, highest = summary.temperature_celsius
        click.echo(f"temperature in the last 24 hours: median {median:.0f} °C, highest {highest:.0f} °C")


def _short(value: Any) -> str:
    text = fact_text(value)
    return text if len(text) <= FACT_WIDTH else text[: FACT_WIDTH - 3] + "..."
