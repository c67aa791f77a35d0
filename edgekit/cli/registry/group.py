"""`edgekit registry`, with `init` and `verify`; its other commands are in the modules beside this one."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.common.console import ProgressLine, control_settings, json_option, needs_extra, note, print_json
from edgekit.cli.common.fleet import read_root
from edgekit.cli.common.numbers import Whole
from edgekit.cli.common.passphrase import given_passphrase, passphrase_option
from edgekit.cli.registry.classes import class_group
from edgekit.cli.registry.export import export
from edgekit.cli.registry.inventory import bom, where
from edgekit.cli.registry.keys import key, renew
from edgekit.cli.registry.options import opened, registry_options
from edgekit.cli.registry.publish import publish
from edgekit.cli.registry.versions import allow_downgrade, list_command, promote, retire, show
from edgekit.errors import VerificationError


@click.group()
def registry() -> None:
    """Create the signed registry, publish bundles, verify it, change its keys.

    \b
    Examples:
      edgekit registry init
      edgekit registry publish bundles/digits-1.0.0-raspberry-pi-4
    """


for _command in (
    key,
    renew,
    class_group,
    publish,
    list_command,
    show,
    promote,
    retire,
    allow_downgrade,
    export,
    bom,
    where,
):
    registry.add_command(_command)


@registry.command()
@registry_options
@passphrase_option
@click.option("--encrypt", is_flag=True, help="Prompt for a passphrase and encrypt the keys with it.")
@click.option("--root-keys", type=Whole(1, 16), default=1, show_default=True, help="Number of root keys.")
@click.option(
    "--root-threshold",
    type=Whole(1, 16),
    default=1,
    show_default=True,
    help="Number of root keys that must sign a change.",
)
@json_option
def init(
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    encrypt: bool,
    root_keys: int,
    root_threshold: int,
    as_json: bool,
) -> None:
    """Create an empty registry and its keys.

    \b
    Example:
      edgekit registry init --registry s3://models/edgekit --keys keys --encrypt
    """
    settings, _, repository = opened(url, keys, lambda _: _new_passphrase(passphrase_file, encrypt))
    repository.create(root_keys=root_keys, root_threshold=root_threshold)
    offline, online = _key_files(settings.keys)
    root = settings.keys / "root.json"
    if as_json:
        print_json({"registry": settings.registry, "root": root, "offline": offline, "online": online})
        return
    click.echo(f"Registry {settings.registry} is ready. Its keys are in {settings.keys}/.")
    click.echo(f"Move offline; needed only to publish a new model or to change keys: {', '.join(offline)}")
    click.echo(f"Keep with the controller: {', '.join(online)}")
    click.echo(f"Copy to every device; it is not secret: {root}")
    if not given_passphrase(passphrase_file) and not encrypt:
        note("The keys are not encrypted: anybody who can read the files can sign. Use --encrypt or --passphrase-file.")


@registry.command()
@registry_options
@json_option
def verify(url: str | None, keys: Path | None, as_json: bool) -> None:
    """Verify all metadata and re-hash every blob; exits 3 on any fault.

    \b
    Example:
      edgekit registry verify
    """
    settings = control_settings(registry=url, keys=keys)
    with needs_extra("registry"):
        from edgekit.registry.verification import verify as verify_registry
        from edgekit.storage.stores import open_store
    faults = verify_registry(open_store(settings.registry), read_root(settings), progress=ProgressLine("verify"))
    if as_json:
        print_json({"sound": not faults, "faults": faults})
    else:
        for fault in faults:
            click.echo(fault)
        if not faults:
            click.echo("All signatures are valid, and every blob has the signed digest.")
    if faults:
        raise VerificationError(
            f"the registry has {len(faults)} fault{'s' if len(faults) > 1 else ''}",
            advice="Check that --registry and --keys belong together; if they do, somebody changed the metadata."
            if faults[0].startswith("metadata: ")
            else "Repair a damaged or missing blob by publishing its bundle again.",
        )


def _new_passphrase(file: Path | None, encrypt: bool) -> str | None:
    given = given_passphrase(file)
    if given or not encrypt:
        return given
    return str(click.prompt("New passphrase for the keys", hide_input=True, confirmation_prompt=True, err=True))


def _key_files(keys: Path) -> tuple[list[str], list[str]]:
    """Names of the key files to keep offline, and of those to keep with the controller."""
    from edgekit.trust.keys import key_path, private_keys
    from edgekit.trust.repository import ONLINE_ROLES

    online = [key_path(keys, role) for role in sorted(ONLINE_ROLES)]
    return [path.name for path in private_keys(keys) if path not in online], [path.name for path in online]
