"""`edgekit registry key` and `edgekit registry renew`: change signing keys, and renew signatures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.common.console import (
    control_settings,
    dry_run_option,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
)
from edgekit.cli.common.numbers import Whole
from edgekit.cli.common.passphrase import passphrase_option
from edgekit.cli.registry.options import passphrase_of, registry_options

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from edgekit.trust.rotation import KeyManager

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def key() -> None:
    """List, add, rotate and revoke signing keys. Devices accept the changes without any action.

    ROLE is root, targets, snapshot, timestamp, director or publisher-MODEL. Changes of the first four need the root
    keys in the key folder; changes of the others need the targets key.

    \b
    Examples:
      edgekit registry key list
      edgekit registry key rotate timestamp
    """


def _public_option(function: F) -> F:
    return click.option(
        "--public-key",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="PEM file of an existing public key [default: make a key pair in the key folder].",
    )(function)


def _threshold_option(function: F) -> F:
    return click.option("--threshold", type=Whole(1, 16), help="New number of keys of the role that must sign.")(
        function
    )


@key.command(name="list")
@registry_options
@passphrase_option
@json_option
def list_command(url: str | None, keys: Path | None, passphrase_file: Path | None, as_json: bool) -> None:
    """List the keys of each role, which private keys are in the key folder, and when the role's metadata expires.

    \b
    Example:
      edgekit registry key list
    """
    rows = _manager(url, keys, passphrase_file).rows()
    if as_json:
        print_json(rows)
        return
    headers = ("role", "key", "must sign", "file", "expires")
    print_table(headers, [(r.role, r.keyid[:12], r.threshold, r.file or "-", r.expires[:10] or "-") for r in rows])


@key.command()
@click.argument("role")
@_public_option
@_threshold_option
@registry_options
@passphrase_option
@json_option
@dry_run_option
def add(
    role: str,
    public_key: Path | None,
    threshold: int | None,
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Add a key to ROLE.

    \b
    Example: a second team publishes the model digits with its own key.
      edgekit registry key add publisher-digits --public-key team.pub
    """
    added = _manager(url, keys, passphrase_file, dry_run).add(role, _public(public_key), threshold=threshold)
    text = f"{_named(added)} {'would sign' if dry_run else 'signs'} for {role}"
    _print_change(as_json, dry_run, role, text, added=added)


@key.command()
@click.argument("role")
@click.argument("keyid", required=False)
@_public_option
@registry_options
@passphrase_option
@json_option
@dry_run_option
def rotate(
    role: str,
    keyid: str | None,
    public_key: Path | None,
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Replace the key of ROLE. If the role has several keys, name the old one by KEYID or its first digits.

    A lost key can be replaced too. If the snapshot key was stolen, rotate the timestamp key as well.

    \b
    Example:
      edgekit registry key rotate director
    """
    added = _manager(url, keys, passphrase_file, dry_run).rotate(role, keyid, _public(public_key))
    text = f"{_named(added)} {'would sign' if dry_run else 'signs'} for {role}; the old key is no longer trusted"
    _print_change(as_json, dry_run, role, text, added=added)
    if role == "director" and not dry_run:
        note("Controllers with this key folder sign with it within seconds; copy the key to the others.")


@key.command()
@click.argument("role")
@click.argument("keyid")
@_threshold_option
@registry_options
@passphrase_option
@json_option
@dry_run_option
def revoke(
    role: str,
    keyid: str,
    threshold: int | None,
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Remove a key from ROLE; name it by KEYID or its first digits.

    \b
    Example:
      edgekit registry key revoke publisher-digits 3fa85f64
    """
    _manager(url, keys, passphrase_file, dry_run).revoke(role, keyid, threshold=threshold)
    text = f"key {keyid[:12]} {'would no longer sign' if dry_run else 'no longer signs'} for {role}"
    _print_change(as_json, dry_run, role, text, revoked=keyid)


@click.command()
@registry_options
@passphrase_option
@json_option
@dry_run_option
def renew(url: str | None, keys: Path | None, passphrase_file: Path | None, as_json: bool, dry_run: bool) -> None:
    """Sign the metadata of every role again whose keys are in the key folder. Renew root and targets once a year.

    \b
    Example:
      edgekit registry renew
    """
    renewed = _manager(url, keys, passphrase_file, dry_run).renew()
    if as_json:
        print_json({"renewed": renewed})
        return
    click.echo(f"{'Would renew' if dry_run else 'Renewed'}: {', '.join(renewed)}")
    missing = [role for role in ("root", "targets") if role not in renewed]
    if missing:
        note(f"Not renewed, because the keys are not here: {', '.join(missing)}. See: edgekit registry key list")


def _manager(url: str | None, keys: Path | None, passphrase_file: Path | None, dry_run: bool = False) -> KeyManager:
    settings = control_settings(registry=url, keys=keys)
    with needs_extra("registry"):
        from edgekit.storage.stores import open_store
        from edgekit.trust.rotation import KeyManager
    phrase = passphrase_of(passphrase_file)(settings.keys)
    return KeyManager(open_store(settings.registry), settings.keys, phrase, dry_run=dry_run)


def _public(path: Path | None) -> Key | None:
    if path is None:
        return None
    from edgekit.trust.keys import load_public

    return load_public(path)


def _named(keyid: str) -> str:
    return f"key {keyid[:12]}" if keyid else "a new key"


def _print_change(as_json: bool, dry_run: bool, role: str, text: str, **fields: str) -> None:
    if as_json:
        print_json({"role": role, "dry_run": dry_run, **fields})
    else:
        click.echo(text)
