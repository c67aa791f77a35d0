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
    note,
    print_json,
    print_table,
    usage,
)
from edgekit.cli.common.fleet import fleet_state, parse_labels, registry_reader, reported_versions
from edgekit.cli.rollout.show import follow
from edgekit.cli.rollout.text import count_of_devices, summary
from edgekit.errors import NotFoundError
from edgekit.rollout.cohort import Cohort, Device
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.settings import ControlSettings

if TYPE_CHECKING:
    from edgekit.bundle.readers import TooOld
    from edgekit.registry import Release
    from edgekit.trust.assignment import Entry

DEFAULTS = RolloutPlan()


@click.command()
@click.argument("name")
@click.argument("version")
@click.option(
    "--waves",
    default=",".join(wave.text for wave in DEFAULTS.waves),
    show_default=True,
    help="Size of each wave, as a share or a number of devices, counted from the start; the last is 100%.",
)
@click.option(
    "--error-threshold",
    type=float,
    default=DEFAULTS.error_threshold,
    show_default=True,
    help="Pause when more than this share of the assigned devices failed.",
)
@click.option(
    "--min-failures",
    type=int,
    default=DEFAULTS.min_failures,
    show_default=True,
    help="Do not pause before this many devices failed.",
)
@click.option(
    "--success-threshold",
    type=float,
    default=DEFAULTS.success_threshold,
    show_default=True,
    help="Start the next wave when this share of the current wave succeeded.",
)
@click.option(
    "--device-deadline",
    type=float,
    default=DEFAULTS.device_deadline_seconds,
    show_default=True,
    metavar="SECONDS",
    help="A device has failed when it reports neither success nor failure for this long.",
)
@click.option("--target", "targets", multiple=True, help="Only devices of this target profile (may be repeated).")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only devices with this label (may be repeated)."
)
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
    """Roll out VERSION of the model NAME. Devices that already run it succeed at once.

    \b
    Examples:
      edgekit rollout start digits 1.0.0 --wait
      edgekit rollout start digits 1.1.0 --waves 1,10%,100% --label site=north
    """
    settings = control_settings()
    with usage():
        plan = RolloutPlan(
            waves=parse_waves(waves),
            success_threshold=success_threshold,
            error_threshold=error_threshold,
            min_failures=min_failures,
            device_deadline_seconds=device_deadline,
        )
        cohort = Cohort(targets=targets, labels=parse_labels(labels))
    with fleet_state(settings) as state:
        members = [device for device in state.devices.all() if cohort.selects(device)]
        releases, missing = _bundles(settings, members, name, version)
        entries = {
            target: msgspec.structs.replace(release.entry, downgrade=downgrade) for target, release in releases.items()
        }
        old = _too_old(releases, members, reported_versions(state.devices.views(0.0, 0.0)))
        if dry_run:
            _print_plan(plan, members, entries, missing, old, as_json)
            return
        started = state.rollouts.start(name, version, entries, plan=plan, cohort=cohort, now=time.time())
        reached = sum(device.target in entries for device in members)
        note(f"rollout {started.id} of {name} {version} started: {count_of_devices(reached)}, waves {waves}")
        _note_missing(missing)
        _note_too_old(old)
        if wait:
            follow(state, started.id, live=False, as_json=as_json)
        elif as_json:
            print_json(summary(started))


def _bundles(
    settings: ControlSettings, members: list[Device], name: str, version: str
) -> tuple[dict[str, Release], dict[str, int]]:
    """The bundle for each target, and the number of devices for each target without a bundle."""
    if not members:
        raise NotFoundError(
            f"the rollout selects no device of fleet {settings.fleet!r}",
            advice="Enroll one: edgekit device enroll ID --target T. Or check --target and --label.",
        )
    releases: dict[str, Release] = {}
    missing: dict[str, int] = {}
    last_error: NotFoundError | None = None
    with registry_reader(settings) as reader:
        for target in sorted({device.target for device in members}):
            try:
                releases[target] = reader.resolve(name, target, version)
            except NotFoundError as error:
                last_error = error
                missing[target] = sum(device.target == target for device in members)
    if not releases and last_error is not None:
        raise last_error
    return releases, missing


def _too_old(releases: dict[str, Release], members: list[Device], versions: dict[str, str]) -> dict[str, TooOld]:
    """By target, the devices of the rollout whose edgekit cannot read its bundle."""
    from edgekit.bundle.readers import too_old

    found = {}
    for target, release in releases.items():
        names = {device.name: versions.get(device.name, "") for device in members if device.target == target}
        if old := too_old(release.manifest, names):
            found[target] = old
    return found


def _note_too_old(found: dict[str, TooOld]) -> None:
    for target, old in found.items():
        note(f"{target}: {old.message}")


def _note_missing(missing: dict[str, int]) -> None:
    for target, count in missing.items():
        note(f"no bundle for {target}: {count_of_devices(count)} skipped until one is published")


def _print_plan(
    plan: RolloutPlan,
    members: list[Device],
    entries: dict[str, Entry],
    missing: dict[str, int],
    old: dict[str, TooOld],
    as_json: bool,
) -> None:
    reached = sum(device.target in entries for device in members)
    waves = [(index + 1, wave.text, wave.limit(reached)) for index, wave in enumerate(plan.waves)]
    if as_json:
        digests = {target: entry.sha256 for target, entry in entries.items()}
        print_json({"devices": reached, "skipped": missing, "digests": digests, "too_old": old, "plan": plan})
        return
    print_table(("wave", "size", "devices assigned in total"), waves)
    print_table(("target", "release", "digest"), [(t, e.release, e.sha256[:12]) for t, e in entries.items()])
    _note_missing(missing)
    _note_too_old(old)
