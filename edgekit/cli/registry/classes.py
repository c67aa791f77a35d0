"""`edgekit registry class`: make and list device classes, which are key pairs for encrypted bundles."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.common.class_keys import class_passphrase
from edgekit.cli.common.console import control_settings, json_option, needs_extra, note, print_json, print_table
from edgekit.cli.common.passphrase import passphrase_option
from edgekit.cli.registry.options import keys_option


@click.group(name="class")
def class_group() -> None:
    """Make and list device classes. Bundles can be encrypted for the devices of a class.

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
    device_class = add_class(settings.keys, name, class_passphrase(settings.keys, passphrase_file))
    path = class_path(settings.keys, name)
    if as_json:
        print_json({"name": name, "key_id": device_class.key_id, "private": path, "public": public_path(path)})
        return
    click.echo(f"Class {name} has key {device_class.key_id[:12]}: {path}")
    note("This private key opens every bundle that is encrypted for the class: keep it secret.")
    note("Publishing needs only the .pub file.")


@class_group.command(name="list")
@keys_option
@json_option
def list_command(keys: Path | None, as_json: bool) -> None:
    """List the device classes for which bundles can be encrypted.

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
        note("There is no device class yet. Make one: edgekit registry class add NAME")
