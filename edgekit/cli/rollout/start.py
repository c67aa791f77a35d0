"""`edgekit rollout start`: plan a rollout, print the plan or start it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import msgspec

from edgekit.cli.common.console import (
    control_settings,
    dry_run_option,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
    printable,
    usage,
)
from edgekit.cli.common.fleet import fleet_state, registry_reader
from edgekit.cli.common.selection import parse_cohort, selection_options, with_groups
from edgekit.cli.rollout.plan_options import plan_options
from edgekit.cli.rollout.show import follow
from edgekit.rollout.document import document
from edgekit.rollout.plan import RolloutPlan
from edgekit.rollout.progress import count_of_devices

if TYPE_CHECKING:
    from edgekit.controller.planning import Planned
    from edgekit.trust.assignment import Entry

MAX_SHOWN = 20


@click.command()
@click.argument("name")
@click.argument("version")
@plan_options
@selection_options
@click.option(
    "--downgrade",
    is_flag=True,
    help="Also downgrade devices that ran a newer release; allow it first with: edgekit registry allow-downgrade.",
)
@click.option("--wait", is_flag=True, help="Wait until the rollout ends; exit 3 when it pauses itself or is aborted.")
@dry_run_option
@json_option
def start(
    name: str,
    version: str,
    plan: RolloutPlan,
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    filter_text: str,
    downgrade: bool,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Roll out VERSION of the model NAME. Devices that already run it succeed at once.

    \b
    Examples:
      edgekit rollout start digits 1.0.0 --wait
      edgekit rollout start digits 1.1.0 --waves 1,10%,100% --label site=north
      edgekit rollout start digits 1.1.0 --waves 'label.ring == 0, name in (pi-4, pi-5), 50%, 100%'
      edgekit rollout start digits 2.0.0 --filter 'label.site in (north, west) and version(digits) < 2.0'
      edgekit rollout start digits 2.0.0 --gate outcome --gate 'latency 50ms' --soak 1h --on-failure return
      edgekit rollout start digits 2.0.0 --shadow 500 --gate agreement:0.95 --shadow-for 2d
    """
    settings = control_settings()
    cohort = parse_cohort(targets, labels, filter_text)
    with needs_extra("controller"):
        from edgekit.controller.planning import plan_rollout, with_chosen
    with fleet_state(settings) as state:
        cohort = with_groups(state, cohort)
        selected = state.select(cohort, time.time())
        if not selected.count():
            raise state.nobody(cohort)
        if plan.canaries is not None:
            plan = msgspec.structs.replace(plan, canaries=with_groups(state, plan.canaries))
        with usage():
            plan = with_chosen(state, plan, selected, time.time())
        with registry_reader(settings) as reader, usage():
            planned, entries = plan_rollout(reader, selected, name, version, plan=plan, downgrade=downgrade)
        if dry_run:
            _print_plan(planned, entries, as_json)
            return
        planned.check_refusals(name, version)
        started = state.rollouts.start(name, version, entries, plan=plan, cohort=cohort, now=time.time())
        waves = ",".join(wave.text for wave in plan.waves)
        note(f"rollout {started.id} of {name} {version} started: {count_of_devices(planned.devices)}, waves {waves}")
        _note_exceptions(planned)
        if wait:
            follow(state, started.id, live=False, as_json=as_json)
        elif as_json:
            print_json(document(started))


def _note_exceptions(planned: Planned) -> None:
    """Print which devices of the rollout will not run the bundle, and why."""
    for target, count in planned.skipped.items():
        note(f"no bundle for {target}: {count_of_devices(count)} skipped until one is published")
    for target, old in planned.too_old.items():
        note(f"{target}: {old.message}")
    if planned.unable:
        names = ", ".join([*planned.unable[:MAX_SHOWN], *["..."] * (len(planned.unable) > MAX_SHOWN)])
        note(f"{count_of_devices(len(planned.unable))} cannot compare and will get it last: {names}")
    if planned.ignoring:
        note(planned.ignoring.message)
    for one in planned.unproven:
        note(one.message)
    for device, reason in sorted(planned.refusals.items())[:MAX_SHOWN]:
        note(f"{device} will refuse it: {reason}")
    for device, reasons in sorted(planned.unfitting.items())[:MAX_SHOWN]:
        note(f"{device} does not fit and will refuse it: {printable('; '.join(reasons))}")
    if len(planned.unfitting) > MAX_SHOWN:
        note(f"{count_of_devices(len(planned.unfitting))} do not fit in all; --dry-run --json lists them")
    if len(planned.refusals) > MAX_SHOWN:
        note(f"{count_of_devices(len(planned.refusals))} will refuse it in all; --dry-run --json lists them")


def _print_plan(planned: Planned, entries: dict[str, Entry], as_json: bool) -> None:
    if as_json:
        print_json(planned)
        return
    waves = [(index + 1, wave.text, wave.limit(planned.devices)) for index, wave in enumerate(planned.plan.waves)]
    print_table(("wave", "size or filter", "devices assigned in total"), waves)
    print_table(("target", "release", "digest"), [(t, e.release, e.sha256[:12]) for t, e in entries.items()])
    _note_exceptions(planned)
