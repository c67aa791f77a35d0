"""`edgekit device remove`, `rekey`, `label` and `quarantine`: changes of enrolled devices."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edgekit.cli.common.console import (
    control_settings,
    dry_run_option,
    json_option,
    needs_extra,
    note,
    print_json,
    printable,
    usage,
)
from edgekit.cli.common.fleet import fleet_state, parse_labels
from edgekit.errors import SettingsError
from edgekit.rollout.cohort import check_labels
from edgekit.settings.device_files import KEY_FILE, SETTINGS_FILE


@click.command()
@click.argument("name", metavar="ID")
@dry_run_option
@json_option
def remove(name: str, dry_run: bool, as_json: bool) -> None:
    """Remove the device ID: it is refused, told so once, and leaves rollouts and standing assignments.

    What it has installed keeps answering. Its events and its entries in the audit log stay. To use it again, enroll it
    anew.

    \b
    Example:
      edgekit device remove pi-1
    """
    settings = control_settings()
    with fleet_state(settings) as state:
        found = state.devices.get(name)
        if dry_run:
            note(f"would remove {name} ({found.target}) from fleet {settings.fleet}")
            return
        with needs_extra("controller"):
            from edgekit.controller.administration import remove_device
        removed = remove_device(state, name, time.time())
    if as_json:
        print_json(removed)
        return
    note(f"{name} is removed from fleet {settings.fleet}; its messages are refused from now on")
    if removed.certified:
        note(f"the broker still accepts its certificate: edgekit ca revoke {name} -o broker/revoked.crl")


@click.command()
@click.argument("name", metavar="ID")
@click.option(
    "--public-key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM of the new public key, if the private key stays on the device. Without it, a key pair is made.",
)
@click.option(
    "-o",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the new key pair [default: devices/ID].",
)
@dry_run_option
@json_option
def rekey(name: str, public_key: Path | None, folder: Path | None, dry_run: bool, as_json: bool) -> None:
    """Give the device ID a new key: what the old one signs is refused at once.

    \b
    Examples:
      edgekit device rekey pi-1 -o pi-1-new
      edgekit device rekey pi-1 --public-key device.pub
    """
    settings = control_settings()
    with needs_extra("controller"):
        from edgekit.controller.administration import has_certificate
        from edgekit.trust.keys import generate_key, load_public, public_path
    own = (folder or Path("devices") / name) / KEY_FILE
    if public_key is None and own.exists():
        raise SettingsError(
            f"{own} exists", advice=f"Move the old key away, or name another folder with -o ({KEY_FILE})."
        )
    with fleet_state(settings) as state:
        state.devices.get(name)
        if dry_run:
            note(f"would give {name} a new key" + ("" if public_key else f" and write {own}"))
            return
        if public_key is not None:
            load_public(public_key)
            pem = public_key.read_text(encoding="utf-8")
        else:
            generate_key(own)
            pem = public_path(own).read_text(encoding="utf-8")
        try:
            state.lifecycle.rekey(name, pem, time.time())
        except BaseException:
            if public_key is None:  # a key that is not enrolled would only mislead
                own.unlink(missing_ok=True)
                public_path(own).unlink(missing_ok=True)
            raise
        certified = has_certificate(state, name, time.time())
    if as_json:
        print_json({"device": name, "fleet": settings.fleet, "key": None if public_key else own})
        return
    note(f"{name} has a new key; what its old key signs is refused")
    if public_key is None:
        note(f"move {own} to the device, beside its {SETTINGS_FILE}, keep no copy, and restart its agent")
    if certified:
        note("its TLS certificate stays valid. Where that key leaked too: remove the device, revoke, enroll it anew")


@click.command()
@click.argument("name", metavar="ID")
@click.argument("labels", metavar="KEY=VALUE", nargs=-1)
@click.option("--remove", "gone", multiple=True, metavar="KEY", help="Remove this label; may be repeated.")
@dry_run_option
@json_option
def label(name: str, labels: tuple[str, ...], gone: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Set labels of the device ID, or remove some. Without any, print them.

    \b
    Examples:
      edgekit device label pi-1 site=south ring=1
      edgekit device label pi-1 --remove ring
    """
    with usage():
        changes: dict[str, str | None] = {**dict.fromkeys(gone), **parse_labels(labels)}
        if both := sorted(set(gone) & set(parse_labels(labels))):
            raise SettingsError(f"label {', '.join(both)} is both set and removed", advice="Name each label once.")
        check_labels(changes)
    with fleet_state(control_settings()) as state:
        found = state.devices.get(name).labels
        if changes and not dry_run:
            found = state.lifecycle.label(name, changes, time.time())
    if dry_run:
        said = ", ".join([*labels, *(f"no {key}" for key in gone)]) or "nothing"
        note(printable(f"would change labels of {name}: {said}"))
        return
    if as_json:
        print_json({"device": name, "labels": found})
        return
    note(printable(f"{name}: " + (", ".join(f"{key}={value}" for key, value in sorted(found.items())) or "no labels")))


@click.command()
@click.argument("name", metavar="ID")
@click.option("--reason", default="by an operator", show_default=True, help="Reason, for the device and its events.")
@click.option("--end", is_flag=True, help="End the quarantine.")
@dry_run_option
@json_option
def quarantine(name: str, reason: str, end: bool, dry_run: bool, as_json: bool) -> None:
    """Put the device ID into quarantine: it gets no assignments, blocks or commands, and leaves running rollouts.

    Its reports are still stored. What it has installed keeps answering.

    \b
    Examples:
      edgekit device quarantine pi-1 --reason 'two devices use this name'
      edgekit device quarantine pi-1 --end
    """
    with fleet_state(control_settings()) as state:
        state.devices.get(name)
        if dry_run:
            note(f"would {'end the quarantine of' if end else 'put into quarantine:'} {name}")
            return
        now = time.time()
        changed = state.lifecycle.release(name, now) if end else state.lifecycle.quarantine(name, reason, now)
    if as_json:
        print_json({"device": name, "quarantined": not end, "changed": changed})
        return
    if end:
        note(f"{name} is served again" if changed else f"{name} was not in quarantine; nothing to do")
    else:
        note(f"{name} is in quarantine" if changed else f"{name} is in quarantine already; nothing to do")
