"""`edgekit rollout`: bring a version to the fleet in waves; watch, pause, resume, abort."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgekit.cli.console import (
    control_settings,
    dry_run_option,
    json_option,
    note,
    print_json,
    print_table,
    printable,
    usage,
)
from edgekit.cli.fleet import fleet_state, parse_labels, registry_reader
from edgekit.errors import NotFoundError, RefusedError
from edgekit.rollout.cohort import Cohort, Device
from edgekit.rollout.machine import (
    Aborted,
    Event,
    Paused,
    Resumed,
    Rollout,
    State,
    Withdraw,
    step,
)
from edgekit.rollout.plan import Plan, parse_waves
from edgekit.settings import ControlSettings

if TYPE_CHECKING:
    from edgekit.state import FleetState
    from edgekit.trust.assignment import Entry

DEFAULTS = Plan()
POLL_SECONDS = 0.3
NOBODY_TOLD_SECONDS = 10.0


@click.group()
def rollout() -> None:
    """Roll a version out in waves; watch, pause, resume, abort.

    \b
    Examples:
      edgekit rollout start digits 1.0.0 --wait
      edgekit rollout watch
    """


@rollout.command()
@click.argument("name")
@click.argument("version")
@click.option(
    "--waves",
    default=",".join(wave.text for wave in DEFAULTS.waves),
    show_default=True,
    help="Shares or counts of devices that may have been told; the last is 100%.",
)
@click.option(
    "--error-threshold",
    type=float,
    default=DEFAULTS.error_threshold,
    show_default=True,
    help="Pause above this share of failures.",
)
@click.option(
    "--min-failures", type=int, default=DEFAULTS.min_failures, show_default=True, help="... but not below so many."
)
@click.option(
    "--success-threshold",
    type=float,
    default=DEFAULTS.success_threshold,
    show_default=True,
    help="Share of a wave that must succeed before the next.",
)
@click.option(
    "--device-deadline",
    type=float,
    default=DEFAULTS.device_deadline_seconds,
    show_default=True,
    metavar="SECONDS",
    help="Silence for this long is a failure.",
)
@click.option("--target", "targets", multiple=True, help="Only devices of this target profile (may be repeated).")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only devices with this label (may be repeated)."
)
@click.option(
    "--downgrade",
    is_flag=True,
    help="Also devices that ran a newer release go back; see: edgekit registry allow-downgrade.",
)
@click.option("--wait", is_flag=True, help="Follow it to its end; exit 3 when it pauses itself or is aborted.")
@dry_run_option
@json_option
def start(
    name: str,
    version: str,
    waves: str,
    error_threshold: float,
    min_failures: int,
    success_threshold: float,
    device_deadline: float,
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    downgrade: bool,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring VERSION of the model NAME to the fleet. Devices that already run it succeed at once.

    \b
    Examples:
      edgekit rollout start digits 1.0.0 --wait
      edgekit rollout start digits 1.1.0 --waves 1,10%,100% --label site=north
    """
    settings = control_settings()
    with usage():
        plan = Plan(
            waves=parse_waves(waves),
            success_threshold=success_threshold,
            error_threshold=error_threshold,
            min_failures=min_failures,
            device_deadline_seconds=device_deadline,
        )
        cohort = Cohort(targets=targets, labels=parse_labels(labels))
    with fleet_state(settings) as state:
        members = [device for device in state.devices.all() if cohort.selects(device)]
        entries, missing = _bundles(settings, members, name, version)
        if downgrade:
            entries = {target: msgspec.structs.replace(entry, downgrade=True) for target, entry in entries.items()}
        if dry_run:
            _print_plan(plan, members, entries, missing, as_json)
            return
        started = state.rollouts.start(name, version, entries, plan=plan, cohort=cohort, now=time.time())
        reached = sum(device.target in entries for device in members)
        note(f"rollout {started.id} of {name} {version} started: {_devices(reached)}, waves {waves}")
        _note_missing(missing)
        if wait:
            _follow(state, started.id, live=False, as_json=as_json)
        elif as_json:
            print_json(_summary(started))


@rollout.command()
@click.argument("number", metavar="[ID]", type=int, required=False)
@json_option
def status(number: int | None, as_json: bool) -> None:
    """Show a rollout and its devices; the newest where no ID is given.

    \b
    Example:
      edgekit rollout status 3
    """
    with fleet_state(control_settings()) as state:
        found = _find(state, number)
    if as_json:
        print_json(_summary(found, devices=True))
    else:
        click.echo("\n".join(_lines(found)))


@rollout.command(name="list")
@json_option
def list_command(as_json: bool) -> None:
    """List every rollout, oldest first.

    \b
    Example:
      edgekit rollout list --json
    """
    with fleet_state(control_settings()) as state:
        rollouts = state.rollouts.all()
    if as_json:
        print_json([_summary(one) for one in rollouts])
    elif rollouts:
        rows = [(r.id, r.model, r.version, r.state.value, _counts(r), r.reason) for r in rollouts]
        print_table(("id", "model", "version", "state", "devices", "reason"), rows)
    else:
        note("There is no rollout yet.")


@rollout.command()
@click.argument("number", metavar="[ID]", type=int, required=False)
@json_option
def watch(number: int | None, as_json: bool) -> None:
    """Follow a rollout to its end; exit 3 when it pauses itself or is aborted.

    \b
    Example:
      edgekit rollout watch
    """
    with fleet_state(control_settings()) as state:
        _follow(state, _find(state, number).id, live=True, as_json=as_json)


@rollout.command()
@click.argument("number", metavar="ID", type=int)
@click.option("--reason", default=Paused().reason, show_default=True)
@dry_run_option
@json_option
def pause(number: int, reason: str, dry_run: bool, as_json: bool) -> None:
    """Tell no more devices; those that were told go on.

    \b
    Example:
      edgekit rollout pause 3 --reason "store visit on Monday"
    """
    _operate(number, Paused(reason), dry_run, as_json)


@rollout.command()
@click.argument("number", metavar="ID", type=int)
@dry_run_option
@json_option
def resume(number: int, dry_run: bool, as_json: bool) -> None:
    """Go on, knowing of the failures so far, which no longer count.

    \b
    Example:
      edgekit rollout resume 3
    """
    _operate(number, Resumed(), dry_run, as_json)


@rollout.command()
@click.argument("number", metavar="ID", type=int)
@click.option("--reason", default=Aborted().reason, show_default=True)
@dry_run_option
@json_option
def abort(number: int, reason: str, dry_run: bool, as_json: bool) -> None:
    """End it; devices that have not activated the version get their previous assignment back.

    \b
    Example:
      edgekit rollout abort 3 --dry-run
    """
    _operate(number, Aborted(reason), dry_run, as_json)


def _operate(number: int, event: Event, dry_run: bool, as_json: bool) -> None:
    with fleet_state(control_settings()) as state:
        if dry_run:
            taken = step(state.rollouts.get(number), event, time.time())
            after, effects = taken.state, taken.effects
            back = [effect.device for effect in effects if isinstance(effect, Withdraw)]
            told = [effect.device for effect in effects if not isinstance(effect, Withdraw)]
        else:
            after = state.rollouts.apply(number, event, time.time())
    if as_json:
        print_json({**_summary(after), **({"tell": told, "withdraw": back} if dry_run else {})})
        return
    would = "would be " if dry_run else ""
    note(f"rollout {number} of {after.model} {after.version} {would or 'is '}{after.state.value}")
    if dry_run:
        note(f"told next: {', '.join(told) or 'nobody'}; given back what they had: {', '.join(back) or 'nobody'}")


def _bundles(
    settings: ControlSettings, members: list[Device], name: str, version: str
) -> tuple[dict[str, Entry], dict[str, int]]:
    """What to assign by target, and how many devices have a target without a bundle."""
    if not members:
        raise NotFoundError(
            f"no device of fleet {settings.fleet!r} is selected",
            advice="Enroll one: edgekit device enroll ID --target T",
        )
    entries: dict[str, Entry] = {}
    missing: dict[str, int] = {}
    fault: NotFoundError | None = None
    with registry_reader(settings) as reader:
        for target in sorted({device.target for device in members}):
            try:
                entries[target] = reader.resolve(name, target, version).entry
            except NotFoundError as error:
                fault = error
                missing[target] = sum(device.target == target for device in members)
    if not entries and fault is not None:
        raise fault
    return entries, missing


def _note_missing(missing: dict[str, int]) -> None:
    for target, count in missing.items():
        note(f"no bundle for {target}: {_devices(count)} skipped until one is published")


def _print_plan(
    plan: Plan, members: list[Device], entries: dict[str, Entry], missing: dict[str, int], as_json: bool
) -> None:
    reached = sum(device.target in entries for device in members)
    waves = [(index + 1, wave.text, wave.limit(reached)) for index, wave in enumerate(plan.waves)]
    if as_json:
        digests = {target: entry.sha256 for target, entry in entries.items()}
        print_json({"devices": reached, "skipped": missing, "digests": digests, "plan": plan})
        return
    print_table(("wave", "size", "devices told by then"), waves)
    print_table(("target", "release", "digest"), [(t, e.release, e.sha256[:12]) for t, e in entries.items()])
    _note_missing(missing)


def _devices(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"


def _find(state: FleetState, number: int | None) -> Rollout:
    if number is not None:
        return state.rollouts.get(number)
    rollouts = state.rollouts.all()
    if not rollouts:
        raise NotFoundError("there is no rollout yet", advice="Start one: edgekit rollout start NAME VERSION")
    return rollouts[-1]


def _follow(state: FleetState, number: int, *, live: bool, as_json: bool) -> None:
    """Show a rollout until it ends or stops itself.

    Raises:
        RefusedError: it paused itself or was aborted.
    """
    shown: list[str] = []
    begun, warned = time.monotonic(), False
    while True:
        found = state.rollouts.get(number)
        if not as_json:
            shown = _show(found, shown, live=live)
        if found.ended or found.stopped_itself:
            break
        idle = not any(progress.told_at for progress in found.devices.values()) and found.state is State.RUNNING
        if idle and not warned and time.monotonic() - begun > NOBODY_TOLD_SECONDS:
            note("no device was told yet: is `edgekit controller run` running?")
            warned = True
        time.sleep(POLL_SECONDS)
    if as_json:
        print_json(_summary(found, devices=True))
    if found.state is not State.FINISHED:
        advice = f"Go on all the same: edgekit rollout resume {number}. Give it up: edgekit rollout abort {number}."
        raise RefusedError(
            f"rollout {number} of {found.model} {found.version} is {found.state.value}: {found.reason}",
            advice=advice if found.state is State.PAUSED else "",
        )


def _show(found: Rollout, shown: list[str], *, live: bool) -> list[str]:
    """Print what changed: over what was printed on a terminal, else one line a change."""
    if live and sys.stdout.isatty():
        lines = _lines(found)
        if lines != shown:
            click.echo((f"\x1b[{len(shown)}A\x1b[J" if shown else "") + "\n".join(lines))
        return lines
    line = f"{found.state.value} wave {found.wave + 1} of {len(found.plan.waves)}: {_counts(found)}"
    if [line] != shown:
        click.echo(line)
    return [line]


def _lines(found: Rollout) -> list[str]:
    reason = f": {printable(found.reason)}" if found.reason else ""
    waves = ", ".join(wave.text for wave in found.plan.waves)
    lines = [
        f"rollout {found.id} of {found.model} {found.version} is {found.state.value}{reason}",
        f"wave {found.wave + 1} of {len(found.plan.waves)} ({waves}); {_counts(found)}",
    ]
    width = max((len(name) for name in found.devices), default=0)
    for name, progress in sorted(found.devices.items()):
        lines.append(f"  {name:<{width}}  {progress.state.value:<9}  {printable(progress.reason)}".rstrip())
    return lines


def _counts(found: Rollout) -> str:
    counts = {state: count for state, count in found.counts().items() if count}
    return ", ".join(f"{count} {state.lower()}" for state, count in counts.items()) or "no devices yet"


def _summary(found: Rollout, *, devices: bool = False) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "id": found.id,
        "model": found.model,
        "version": found.version,
        "state": found.state.value,
        "reason": found.reason,
        "stopped_itself": found.stopped_itself,
        "wave": found.wave + 1,
        "waves": [wave.text for wave in found.plan.waves],
        "counts": found.counts(),
    }
    if devices:
        summary["devices"] = {
            name: {"state": p.state.value, "reason": p.reason, "digest": p.digest, "told_at": p.told_at}
            for name, p in found.devices.items()
        }
    return summary
