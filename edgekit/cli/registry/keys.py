"""`edgekit registry key` and `edgekit registry renew`: who may sign, and for how long."""

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
from edgekit.cli.common.passphrase import passphrase_option
from edgekit.cli.registry.options import passphrase_of, registry_options

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from edgekit.trust.rotation import KeyManager

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def key() -> None:
    """List, add, rotate and revoke the keys that sign. Devices follow by themselves.

    ROLE is root, targets, snapshot, timestamp, director or publisher-MODEL. The first four need the root key(s) here,
    the others the targets key.
    """


def _public_option(function: F) -> F:
    return click.option(
        "--public-key",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="PEM of a key that somebody else holds [default: make one here].",
    )(function)


def _threshold_option(function: F) -> F:
    return click.option(
        "--threshold", type=click.IntRange(1, 16), help="How many keys of the role must sign from now on."
    )(function)


@key.command(name="list")
@registry_options
@passphrase_option
@json_option
def list_command(url: str | None, keys: Path | None, passphrase_file: Path | None, as_json: bool) -> None:
    """List who may sign what, which of the private keys are here, and until when their signatures hold.

    \b
    Example:
      edgekit registry key list
    """
    rows = _keeper(url, keys, passphrase_file).rows()
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
    """Let one more key sign for ROLE.

    \b
    Example, a second team that publishes the model digits with its own key:
      edgekit registry key add publisher-digits --public-key team.pub
    """
    made = _keeper(url, keys, passphrase_file, dry_run).add(role, _public(public_key), threshold=threshold)
    said = f"{_named(made)} {'would' if dry_run else 'may'} sign for {role} from now on"
    _say(as_json, dry_run, role, said, added=made)


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
    """Put a new key in the place of ROLE's key (of KEYID, or its beginning, where there are several).

    A lost key can be replaced too. After a theft of the snapshot key rotate the timestamp key as well.

    \b
    Example:
      edgekit registry key rotate director
    """
    made = _keeper(url, keys, passphrase_file, dry_run).rotate(role, keyid, _public(public_key))
    said = f"{_named(made)} {'would sign' if dry_run else 'signs'} for {role} from now on; the old one not any more"
    _say(as_json, dry_run, role, said, added=made)
    if role == "director" and not dry_run:
        note("Start the controller anew: it signs every assignment again with the new key.")


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
    """Take the key KEYID (or the beginning of its id) from ROLE.

    \b
    Example:
      edgekit registry key revoke publisher-digits 3fa85f64
    """
    _keeper(url, keys, passphrase_file, dry_run).revoke(role, keyid, threshold=threshold)
    said = f"key {keyid[:12]} {'could' if dry_run else 'may'} not sign for {role} any more"
    _say(as_json, dry_run, role, said, revoked=keyid)


@click.command()
@registry_options
@passphrase_option
@json_option
@dry_run_option
def renew(url: str | None, keys: Path | None, passphrase_file: Path | None, as_json: bool, dry_run: bool) -> None:
    """Sign everything anew that the keys here can sign; root and targets want it once a year, with their keys.

    \b
    Example:
      edgekit registry renew
    """
    renewed = _keeper(url, keys, passphrase_file, dry_run).renew()
    if as_json:
        print_json({"renewed": renewed})
        return
    click.echo(f"{'Would be signed' if dry_run else 'Signed'} anew: {', '.join(renewed)}")
    away = [role for role in ("root", "targets") if role not in renewed]
    if away:
        note(f"Not here, so not renewed: the key of {' and '.join(away)}. See: edgekit registry key list")


def _keeper(url: str | None, keys: Path | None, passphrase_file: Path | None, dry_run: bool = False) -> KeyManager:
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


def _say(as_json: bool, dry_run: bool, role: str, text: str, **fields: str) -> None:
    if as_json:
        print_json({"role": role, "dry_run": dry_run, **fields})
    else:
        click.echo(text)
