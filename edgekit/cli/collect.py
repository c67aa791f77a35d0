"""`edgekit collect`: decrypt the samples that devices sent, and write them as data for convert and calibrate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import (
    ProgressLine,
    control_settings,
    dry_run_option,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
)
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import Seconds
from edgekit.cli.common.passphrase import given_passphrase, needed_passphrase, passphrase_option
from edgekit.cli.common.selection import parse_cohort, selection_options, with_groups
from edgekit.errors import NotFoundError

if TYPE_CHECKING:
    from edgekit.rollout.cohort import Cohort
    from edgekit.samples.collecting import Collected
    from edgekit.settings import ControlSettings


@click.command()
@selection_options
@click.option("--model", default="", help="Only samples of this model.")
@click.option("--since", type=Seconds(1), metavar="DURATION", help="Only samples that arrived in this time, e.g. 7d.")
@click.option(
    "-o",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("samples"),
    show_default=True,
    help="Folder of the files; files of an earlier run get the new rows.",
)
@click.option("--remove", is_flag=True, help="Remove the written samples from the store.")
@click.option("--new-key", is_flag=True, help="Make a key pair for samples instead; give the .pub file to devices.")
@passphrase_option
@dry_run_option
@json_option
def collect(
    targets: tuple[str, ...],
    labels: tuple[str, ...],
    filter_text: str,
    model: str,
    since: float | None,
    folder: Path,
    remove: bool,
    new_key: bool,
    passphrase_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Decrypt the samples that devices sent, and write one .npz a model: inputs, and what local and cloud said.

    \b
    Examples:
      edgekit collect --new-key
      edgekit device enroll pi-1 --target raspberry-pi-4 --sample-key keys/samples/samples.pub
      edgekit device command pi-1 collect --samples 100 --wait
      edgekit collect --model digits --since 7d --filter 'label.site == north'
      edgekit convert digits.keras --target raspberry-pi-4 --data samples/digits-3f5a9c0d.npz
    """
    settings = control_settings()
    if new_key:
        _make_key(settings, passphrase_file, dry_run=dry_run, as_json=as_json)
        return
    cohort = parse_cohort(targets, labels, filter_text)
    with needs_extra("registry"):
        from edgekit.samples.collecting import Selection, open_samples, remove_samples, write_samples
        from edgekit.sealing.message_keys import load_message_keys, message_key_files
        from edgekit.storage.stores import open_store
    files = message_key_files(settings.keys)
    if not files:
        raise NotFoundError(
            f"there is no key for samples in {settings.keys / 'samples'}",
            advice="Run it where the key is. For a first one, run: edgekit collect --new-key",
        )
    keys = load_message_keys(settings.keys, needed_passphrase(passphrase_file, files))
    devices = _devices(settings, cohort) if cohort.text else None
    after = 0.0 if since is None else time.time() - since
    store = open_store(settings.registry)
    opened = open_samples(
        store, keys, Selection(devices=devices, model=model, since=after), ProgressLine("opening samples")
    )
    found = write_samples(opened, folder, dry_run=dry_run)
    if remove and not dry_run:
        import msgspec

        found = msgspec.structs.replace(found, removed=remove_samples(store, opened))
    _print(found, dry_run=dry_run, as_json=as_json)


def _make_key(settings: ControlSettings, passphrase_file: Path | None, *, dry_run: bool, as_json: bool) -> None:
    with needs_extra("registry"):
        from edgekit.sealing.message_keys import FOLDER, add_message_key
        from edgekit.trust.keys import public_path
    if dry_run:
        note(f"would make a key pair in {settings.keys / FOLDER}")
        return
    public = public_path(add_message_key(settings.keys, given_passphrase(passphrase_file)))
    if as_json:
        print_json({"public_key": str(public)})
        return
    note(f"made {public.with_suffix('.key')}, which opens samples: keep it off devices and controllers, and back it up")
    note(f'devices that are enrolled or join get it with a line in edgekit.toml: sample_key = "{public}"')


def _devices(settings: ControlSettings, cohort: Cohort) -> set[str]:
    with fleet_state(settings) as state:
        cohort = with_groups(state, cohort)
        found = state.devices.views(time.time(), settings.offline_after_seconds, cohort=cohort)
        if not found:
            raise state.nobody(cohort)
        return {view.device for view in found}


def _print(found: Collected, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    if found.files:
        rows = [(one["file"], one["model"], one["rows"], one["new"]) for one in found.files]
        print_table(("FILE", "MODEL", "ROWS", "NEW"), rows)
        by_reason = ", ".join(f"{count} {reason}" for reason, count in sorted(found.reasons.items()))
        note(f"{found.samples} samples of {len(found.devices)} devices: {by_reason}")
    else:
        note("The store has no such samples.")
    if found.other_keys:
        note(f"{found.other_keys} samples are sealed for keys that are not here; they stay in the store")
    for name, why in sorted(found.damaged.items()):
        note(f"{name} cannot be read and stays in the store: {why}")
    if found.removed:
        note(f"{found.removed} samples were removed from the store")
    if dry_run:
        note("nothing was written")
