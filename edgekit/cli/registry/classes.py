"""`edgekit registry class`, and publishing for device classes: whose devices can open a sealed bundle."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.console import control_settings, json_option, needs_extra, note, print_json, print_table
from edgekit.cli.passphrase import needed_passphrase, passphrase_option
from edgekit.cli.registry.place import keys_option
from edgekit.errors import NotFoundError

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest

F = TypeVar("F", bound=Callable[..., Any])


@click.group(name="class")
def class_group() -> None:
    """Make and list device classes, for which bundles can be published encrypted.

    \b
    Examples:
      edgekit registry class add cameras
      edgekit registry publish bundles/digits-1.0.0-raspberry-pi-4 --encrypt-for cameras
      edgekit device enroll pi-1 --target raspberry-pi-4 --class cameras
    """


@class_group.command()
@click.argument("name")
@keys_option
@passphrase_option
@json_option
def add(name: str, keys: Path | None, passphrase_file: Path | None, as_json: bool) -> None:
    """Make the key pair of the device class NAME.

    \b
    Example:
      edgekit registry class add cameras
    """
    settings = control_settings(keys=keys)
    with needs_extra("registry"):
        from edgekit.sealing.class_keys import add_class, class_path
        from edgekit.trust.keys import public_path
    made = add_class(settings.keys, name, class_passphrase(settings.keys, passphrase_file))
    path = class_path(settings.keys, name)
    if as_json:
        print_json({"name": name, "key_id": made.key_id, "private": path, "public": public_path(path)})
        return
    click.echo(f"Class {name} has key {made.key_id[:12]}: {path}")
    note("Whoever holds that file opens every bundle that is published for the class. Publishing needs the .pub only.")


@class_group.command(name="list")
@keys_option
@json_option
def list_command(keys: Path | None, as_json: bool) -> None:
    """List the device classes that bundles can be published for.

    \b
    Example:
      edgekit registry class list
    """
    settings = control_settings(keys=keys)
    with needs_extra("registry"):
        from edgekit.sealing.class_keys import list_classes
    rows = list_classes(settings.keys)
    if as_json:
        print_json([{"name": row.name, "key_id": row.key_id, "private_here": row.private_here} for row in rows])
    elif rows:
        print_table(
            ("class", "key", "private key"),
            [(row.name, row.key_id[:12], "here" if row.private_here else "elsewhere") for row in rows],
        )
    else:
        note("There is no device class yet.")


def class_passphrase(keys: Path, file: Path | None) -> str | None:
    """The passphrase of class keys, which is that of the key folder; asked for as `needed_passphrase` does."""
    from edgekit.sealing.class_keys import FOLDER
    from edgekit.trust.keys import private_keys

    return needed_passphrase(file, [*private_keys(keys), *private_keys(keys / FOLDER)])


def plain_class_keys(keys: Path, names: Sequence[str], file: Path | None) -> dict[str, bytes]:
    """Private keys of classes as a device holds them, without passphrase, by the names of their files there.

    Raises:
        NotFoundError, SettingsError: as `load_class_key`.
    """
    if not names:
        return {}
    with needs_extra("controller"):
        from edgekit.sealing.class_keys import class_path, find_class, load_class_key, plain_pem
    chosen = [find_class(keys, name).name for name in dict.fromkeys(names)]
    passphrase = class_passphrase(keys, file)
    return {f"class-{name}.key": plain_pem(load_class_key(class_path(keys, name), passphrase)) for name in chosen}


def encrypt_option(function: F) -> F:
    """Add ``--encrypt-for``."""
    return click.option(
        "--encrypt-for",
        "encrypt_for",
        metavar="CLASS",
        multiple=True,
        help="Encrypt every file, for devices of CLASS to open; may be repeated. See: edgekit registry class",
    )(function)


@contextlib.contextmanager
def sealed_copies(
    bundles: Sequence[Path],
    manifests: Sequence[Manifest],
    classes: Sequence[str],
    keys: Path,
    passphrase: Callable[[], str | None],
    *,
    dry_run: bool,
) -> Iterator[tuple[Sequence[Path], Sequence[Manifest]]]:
    """The bundles as they are to be published: themselves without `classes`, else sealed ones, while it lasts.

    Raises:
        NotFoundError: a class has no public key in the folder `keys`.
        Whatever `content_secret` and `seal_bundle` raise.
    """
    if not classes:
        yield bundles, manifests
        return
    from edgekit.sealing.bundles import seal_bundle
    from edgekit.sealing.class_keys import content_secret, find_class

    chosen = [find_class(keys, name) for name in dict.fromkeys(classes)]
    try:
        secret = content_secret(keys, passphrase(), make=not dry_run)
    except NotFoundError:
        secret = secrets.token_bytes(32)  # for the plan alone; the first publish makes the lasting one
    with TemporaryDirectory(prefix="edgekit-sealed-") as scratch:
        folders = [Path(scratch, str(number)) for number in range(len(bundles))]
        sealed = [
            seal_bundle(bundle, manifest, folder, classes=chosen, secret=secret)
            for bundle, manifest, folder in zip(bundles, manifests, folders, strict=True)
        ]
        yield folders, sealed
