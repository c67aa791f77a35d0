"""`edgekit device export` and `import`: move devices' records to another controller of the same fleet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.bounds import MAX_INTEGER
from edgekit.bundle.targets import builtin_targets, find_target
from edgekit.cli.common.console import (
    control_settings,
    dry_run_option,
    json_option,
    needs_extra,
    note,
    print_json,
    printable,
)
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.selection import parse_cohort, selection_options, with_groups
from edgekit.errors import DataError, DiskError, EdgekitError
from edgekit.identity.record import FORMAT, DeviceRecord, RecordFile, encode_records, parse_records
from edgekit.storage.files import replace_file

if TYPE_CHECKING:
    from edgekit.mqtt.messages import Reported


@click.command()
@click.argument("names", metavar="[ID]", nargs=-1)
@selection_options
@click.option("--all", "everything", is_flag=True, help="All devices of the fleet.")
@click.option(
    "-o", "output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write; JSON."
)
def export(
    names: tuple[str, ...],
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    filter_text: str,
    everything: bool,
    output: Path,
) -> None:
    """Write the records of devices to a file: labels, public key, numbers and events, for `edgekit device import`.

    The file has no secrets. It does not move assignments: roll out again where the devices are imported.

    \b
    Examples:
      edgekit device export pi-1 -o pi-1.json
      edgekit device export --all -o fleet.json
    """
    cohort = parse_cohort(targets, labels, filter_text)
    if sum((bool(names), bool(cohort.text), everything)) != 1:
        raise click.UsageError("Name devices, or select them with --filter, --target or --label, or give --all.")
    settings = control_settings()
    with fleet_state(settings) as state:
        if not names:
            cohort = with_groups(state, cohort)
            views = state.devices.views(time.time(), settings.offline_after_seconds, cohort=cohort)
            names = tuple(view.device for view in views)
            if not names:
                raise state.nobody(cohort)
        records = tuple(state.records.export(name) for name in dict.fromkeys(names))
    try:
        replace_file(output, encode_records(RecordFile(FORMAT, settings.fleet, time.time(), records)))
    except OSError as error:
        raise DiskError(f"{output} cannot be written: {error.strerror or error}") from error
    note(f"{output} has {len(records)} device{'' if len(records) == 1 else 's'} of fleet {settings.fleet}")


@click.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@dry_run_option
@json_option
def import_devices(file: Path, dry_run: bool, as_json: bool) -> None:
    """Enroll the devices of FILE with their keys, labels, numbers and events. All are imported, or none.

    \b
    Example:
      edgekit device import fleet.json
    """
    settings = control_settings()
    found = parse_records(file.read_bytes(), settings.fleet)
    checked = [(device, checked_report(device, settings.fleet)) for device in found.devices]
    names = [device.name for device, _ in checked]
    with fleet_state(settings) as state:
        state.records.check_free(names)
        if not dry_run:
            state.records.add(checked, time.time(), source=file.name)
    if as_json:
        print_json({"fleet": settings.fleet, "devices": names, "imported": not dry_run})
        return
    text = ", ".join(names[:10]) + (" and others" if len(names) > 10 else "")
    note(f"{'would import' if dry_run else 'imported'} {len(names)} into fleet {settings.fleet}: {printable(text)}")


def checked_report(device: DeviceRecord, fleet: str) -> Reported | None:
    """The report of a record, verified with the record's key; None if it has none.

    Raises:
        EdgekitError: target, key or report of the record are not valid; names the device.
    """
    with needs_extra("controller"):
        from edgekit.mqtt.messages import Reported
        from edgekit.trust.envelopes import open_envelope
        from edgekit.trust.keys import parse_public
    try:
        find_target(device.target, builtin_targets())
        key = parse_public(device.public_key.encode(), "its public key")
        if not device.report:
            return None
        report = open_envelope(device.report, Reported, key)
        if (report.device, report.fleet) != (device.name, fleet):
            raise DataError(f"its report is of {report.device[:64]!r} in fleet {report.fleet[:64]!r}")
        if not 0 < report.number <= MAX_INTEGER:
            raise DataError(f"its report has number {report.number}, expected 1 to {MAX_INTEGER}")
    except EdgekitError as error:
        raise DataError(f"device {device.name} cannot be imported: {error}", advice=error.advice) from error
    return report
