"""`edgekit device list` and `edgekit device show`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.common.console import control_settings, json_option, note, print_json, print_table, printable
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import Whole
from edgekit.cli.common.selection import parse_cohort, selection_options, with_groups
from edgekit.cli.rollout.text import time_text

if TYPE_CHECKING:
    from edgekit.state import DeviceView

FACT_WIDTH = 80
PAGE = 100


@click.command(name="list")
@selection_options
@click.option(
    "--limit", type=Whole(1, 1_000_000), metavar="N", help=f"Devices of a page [default: {PAGE}; with --json all]."
)
@click.option("--after", default="", metavar="ID", help="Begin after this device: the next page.")
@click.option("--all", "everything", is_flag=True, help="All devices on one page.")
@json_option
def list_command(
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    filter_text: str,
    limit: int | None,
    after: str,
    everything: bool,
    as_json: bool,
) -> None:
    """List the devices with their models and the outcomes of their last deployments.

    \b
    Examples:
      edgekit device list --json
      edgekit device list --filter 'label.site in (north, west) and version(digits) < 2.0 and not online'
    """
    cohort = parse_cohort(targets, labels, filter_text)
    settings = control_settings()
    if limit is None and not as_json and not everything:
        limit = PAGE
    with fleet_state(settings) as state:
        cohort = with_groups(state, cohort)
        now, offline_after = time.time(), settings.offline_after_seconds
        views = state.devices.views(now, offline_after, cohort=cohort, after=after, limit=limit)
        total = len(views) if limit is None else state.devices.count(now, offline_after, cohort)
        nothing = state.nobody(cohort) if not total and cohort.text else None
    if as_json:
        print_json(views)
    elif nothing is not None:
        note(f"{nothing}. {nothing.advice}")
    elif views:
        rows = [(v.device, v.target, _presence(v), _assigned(v), _models(v), _outcomes(v)) for v in views]
        print_table(("device", "target", "presence", "assigned", "models", "last deployments"), rows)
        if len(views) < total:
            note(f"{len(views)} of {total} devices; the next page: --after {views[-1].device}")
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
    settings = control_settings()
    with fleet_state(settings) as state:
        state.devices.get(name)
        (view,) = state.devices.views(time.time(), settings.offline_after_seconds, name)
        assignment = state.assignments.get(name)
        events = state.devices.events(name)
    entries = assignment.entries if assignment else {}
    version = assignment.version if assignment else 0
    if as_json:
        print_json({"reported": view, "assigned": {"version": version, "entries": entries}, "events": events})
        return
    rows = [
        ("target", view.target),
        ("labels", ", ".join(f"{key}={value}" for key, value in view.labels.items()) or "-"),
        ("presence", _presence(view)),
        *([("quarantine", view.quarantine)] if view.quarantine else []),
        ("models", _models(view)),
        ("last deployments", _outcomes(view)),
        ("assigned", ", ".join(f"{e.name} {e.version}" for e in entries.values()) or "-"),
        ("assignment", f"version {version}, accepted {view.assignment}"),
    ]
    print_table((name, ""), [*rows, *((f"fact {key}", _short(value)) for key, value in sorted(view.facts.items()))])
    for event in events:
        text = " ".join(part for part in (event.kind, event.model, event.error, event.message) if part)
        click.echo(f"{time_text(event.at)}  {printable(text)}")


def _presence(view: DeviceView) -> str:
    return f"{_connection(view)}, in quarantine" if view.quarantine else _connection(view)


def _connection(view: DeviceView) -> str:
    if view.online:
        return "online"
    return f"offline since {time_text(view.seen)}" if view.seen else "never seen"


def _assigned(view: DeviceView) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(view.assigned.items())) or "nothing assigned"


def _models(view: DeviceView) -> str:
    parts = []
    for name, running in sorted(view.models.items()):
        state = "" if running.state == "IDLE" else f" ({running.state})"
        state = f" (waits: {running.waiting.reason})" if running.waiting else state
        parts.append(f"{name} {running.version or 'none'}{state}")
    return ", ".join(parts) or "-"


def _outcomes(view: DeviceView) -> str:
    parts = []
    for name, outcome in sorted(view.outcomes.items()):
        error = f": {outcome.error}" if outcome.error else ""
        parts.append(f"{name} {outcome.version} {outcome.result}{error}")
    return ", ".join(parts) or "-"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        text = ", ".join(f"{key} {one}" for key, one in sorted(value.items())) or "-"
    else:
        text = " ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
    return text if len(text) <= FACT_WIDTH else text[: FACT_WIDTH - 3] + "..."
