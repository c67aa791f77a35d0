"""`edgekit registry`: create the signed registry, publish bundles, look into it, verify it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.console import (
    Progress,
    control_settings,
    dry_run_option,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
    step,
)
from edgekit.cli.fleet import read_root, registry_reader
from edgekit.cli.passphrase import given_passphrase, needed_passphrase, passphrase_option
from edgekit.cli.registry_classes import class_group, encrypt_option, sealed_copies
from edgekit.cli.registry_deltas import deltas_for, planned_deltas
from edgekit.cli.registry_keys import key, renew
from edgekit.errors import NotFoundError, VerificationError
from edgekit.settings import ControlSettings

if TYPE_CHECKING:
    from edgekit.protocols import Store
    from edgekit.registry import Row
    from edgekit.trust.repository import Repository

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def registry() -> None:
    """Create the signed registry, publish bundles, verify it, change its keys."""


registry.add_command(key)
registry.add_command(renew)
registry.add_command(class_group)


def _place_options(function: F) -> F:
    function = click.option("--keys", type=click.Path(path_type=Path, file_okay=False), help="Folder of key files.")(
        function
    )
    return click.option("--registry", "url", metavar="URL", help="file://, s3://, gs:// or az:// store.")(function)


@registry.command()
@_place_options
@passphrase_option
@click.option("--encrypt", is_flag=True, help="Ask for a passphrase for the keys.")
@click.option("--root-keys", type=click.IntRange(1, 16), default=1, show_default=True, help="Root keys to make.")
@click.option(
    "--root-threshold", type=click.IntRange(1, 16), default=1, show_default=True, help="Of them, how many sign."
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
    """Create an empty registry and all its keys.

    \b
    Example:
      edgekit registry init --registry s3://models/edgekit --keys keys --encrypt
    """
    settings, _, repository = _opened(url, keys, lambda _: _new_passphrase(passphrase_file, encrypt))
    repository.create(root_keys=root_keys, root_threshold=root_threshold)
    offline, online = _key_files(settings.keys)
    root = settings.keys / "root.json"
    if as_json:
        print_json({"registry": settings.registry, "root": root, "offline": offline, "online": online})
        return
    click.echo(f"Registry {settings.registry} is ready. Its keys are in {settings.keys}/.")
    click.echo(f"Take offline, and bring back only to name a new model or to change keys: {', '.join(offline)}")
    click.echo(f"Stay with the controller: {', '.join(online)}")
    click.echo(f"Goes to every device, and is no secret: {root}")
    if not given_passphrase(passphrase_file) and not encrypt:
        note("The keys are not encrypted; who can read the files can sign. (--encrypt, or a passphrase file.)")


@registry.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--delta-from",
    "delta_from",
    metavar="VERSION",
    multiple=True,
    help="Let devices that run VERSION fetch the difference only; may be repeated. Default: the versions that most "
    "devices of the fleet run, where its database is at hand; 'none' makes no delta.",
)
@encrypt_option
@_place_options
@passphrase_option
@dry_run_option
@json_option
def publish(
    bundles: tuple[Path, ...],
    delta_from: tuple[str, ...],
    encrypt_for: tuple[str, ...],
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Check, upload and sign BUNDLES (folders that `edgekit convert` wrote).

    \b
    Example:
      edgekit registry publish bundles/digits-1.0.0-raspberry-pi-4 bundles/digits-1.0.0-jetson-orin
      edgekit registry publish bundles/digits-1.1.0-raspberry-pi-4 --delta-from 1.0.0
      edgekit registry publish bundles/digits-1.1.0-raspberry-pi-4 --encrypt-for cameras
    """
    phrase = functools.cache(_passphrase_of(passphrase_file))  # asked for once
    settings, store, repository = _opened(url, keys, phrase)
    with needs_extra("registry"):
        from edgekit.registry import check_bundle
        from edgekit.registry import publish as publish_bundle
    checked = [check_bundle(bundle) for bundle in bundles]  # all of them, before the first one is published
    done = []
    with sealed_copies(
        bundles, checked, encrypt_for, settings.keys, lambda: phrase(settings.keys), dry_run=dry_run
    ) as (folders, manifests):
        if dry_run:
            planned = [planned_deltas(settings, manifest, delta_from) for manifest in manifests]
            _print_plan(store, repository, manifests, planned, as_json)
            return
        for folder, manifest in zip(folders, manifests, strict=True):
            label = f"Publishing {manifest.name} {manifest.version} for {manifest.target}"
            deltas = deltas_for(settings, folder, manifest, delta_from)
            with step(label):
                release = publish_bundle(store, repository, folder, deltas=deltas, progress=Progress(label))
            done.append(release.entry)
    if as_json:
        print_json(done)
        return
    headers = ("model", "version", "target", "release", "digest")
    print_table(headers, [(e.name, e.version, e.target, e.release, e.sha256[:12]) for e in done])


@registry.command(name="list")
@_place_options
@json_option
def list_command(url: str | None, keys: Path | None, as_json: bool) -> None:
    """List every published bundle.

    \b
    Example:
      edgekit registry list
    """
    with registry_reader(control_settings(registry=url, keys=keys)) as reader:
        rows = reader.list()
    if as_json:
        print_json(rows)
    elif rows:
        _print_rows(rows)
    else:
        note("The registry holds no bundle yet.")


@registry.command()
@click.argument("name")
@click.argument("version", required=False)
@_place_options
@json_option
def show(name: str, version: str | None, url: str | None, keys: Path | None, as_json: bool) -> None:
    """Show what is published of a model: every version, or one with its files.

    \b
    Example:
      edgekit registry show digits 1.0.0
    """
    with registry_reader(control_settings(registry=url, keys=keys)) as reader:
        rows = [row for row in reader.list(name) if version in (None, row.version)]
        if not rows:
            raise NotFoundError(
                f"the registry has no {name}{f' {version}' if version else ''}", advice="See: edgekit registry list"
            )
        if version is None:
            print_json(rows) if as_json else _print_rows(rows)
            return
        releases = [reader.load(row) for row in rows]
    if as_json:
        print_json(releases)
        return
    for release in releases:
        manifest = release.manifest
        click.echo(f"{manifest.name} {manifest.version} for {manifest.target}, release {release.release}")
        click.echo(f"  digest   {release.sha256}")
        click.echo(f"  runtime  {manifest.runtime}, recipe {manifest.recipe.id}")
        if manifest.quality:
            click.echo(f"  quality  {manifest.quality.metric} {manifest.quality.value:.4f} (n = {manifest.quality.n})")
        if manifest.sealed:
            click.echo(f"  sealed   for {', '.join(key.device_class for key in manifest.sealed.keys)}")
        for entry in manifest.files:
            click.echo(f"  {entry.role:<8} {entry.path}, {entry.size} bytes, sha256 {entry.sha256[:12]}")
        for offer in next(row.deltas for row in rows if row.path == release.path):
            click.echo(f"  delta    from sha256 {offer.base[:12]}, {offer.size + offer.length} bytes")


@registry.command()
@click.argument("name")
@click.argument("version")
@click.argument("channel")
@_place_options
@passphrase_option
@dry_run_option
@json_option
def promote(
    name: str,
    version: str,
    channel: str,
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put a version into a CHANNEL, for example stable.

    \b
    Example:
      edgekit registry promote digits 1.0.0 stable
    """
    _mark(url, keys, passphrase_file, dry_run, as_json, name, version, channel=channel)


@registry.command()
@click.argument("name")
@click.argument("version")
@_place_options
@passphrase_option
@dry_run_option
@json_option
def retire(
    name: str,
    version: str,
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Stop choosing a version; devices that run it keep it, and it can still be named.

    \b
    Example:
      edgekit registry retire digits 1.0.0
    """
    _mark(url, keys, passphrase_file, dry_run, as_json, name, version, retired=True)


@registry.command(name="allow-downgrade")
@click.argument("name")
@click.argument("version")
@click.option("--no-more", is_flag=True, help="Take the permission back.")
@_place_options
@passphrase_option
@dry_run_option
@json_option
def allow_downgrade(
    name: str,
    version: str,
    no_more: bool,
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let devices that ran a newer release go back to a version, when a rollout says --downgrade as well.

    \b
    Example:
      edgekit registry allow-downgrade digits 1.0.0
      edgekit rollout start digits 1.0.0 --downgrade
    """
    _mark(url, keys, passphrase_file, dry_run, as_json, name, version, downgrade=not no_more)


@registry.command()
@_place_options
@json_option
def verify(url: str | None, keys: Path | None, as_json: bool) -> None:
    """Verify all metadata and re-hash every blob; exits 3 when anything is wrong.

    \b
    Example:
      edgekit registry verify
    """
    settings = control_settings(registry=url, keys=keys)
    with needs_extra("registry"):
        from edgekit.registry.verification import verify as verify_registry
        from edgekit.stores import open_store
    faults = verify_registry(open_store(settings.registry), read_root(settings), progress=Progress("verify"))
    if as_json:
        print_json({"sound": not faults, "faults": faults})
    else:
        for fault in faults:
            click.echo(fault)
        if not faults:
            click.echo("Every signature holds and every blob has the digest that was signed.")
    if faults:
        raise VerificationError(
            f"the registry has {len(faults)} fault{'s' if len(faults) > 1 else ''}",
            advice="See that --registry and --keys belong together; else somebody changed the registry's metadata."
            if faults[0].startswith("metadata: ")
            else "A damaged or missing blob is mended by publishing its bundle again.",
        )


def _mark(
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    dry_run: bool,
    as_json: bool,
    name: str,
    version: str,
    **custom: Any,
) -> None:
    _, _, repository = _opened(url, keys, _passphrase_of(passphrase_file))
    paths = repository.mark(name, version, dry_run=dry_run, **custom)
    if as_json:
        print_json({"changed": paths, "dry_run": dry_run, **custom})
        return
    if dry_run:
        note("This would be changed; nothing was:")
    for path in paths:
        click.echo(f"{path}: {', '.join(f'{key} {value}'.lower() for key, value in custom.items())}")


def _opened(
    url: str | None, keys: Path | None, passphrase: Callable[[Path], str | None]
) -> tuple[ControlSettings, Store, Repository]:
    settings = control_settings(registry=url, keys=keys)
    with needs_extra("registry"):
        from edgekit.stores import open_store
        from edgekit.trust.repository import Repository
    store = open_store(settings.registry)
    return settings, store, Repository(store, settings.keys, passphrase(settings.keys))


def _passphrase_of(file: Path | None) -> Callable[[Path], str | None]:
    from edgekit.trust.keys import private_keys

    return lambda keys: needed_passphrase(file, private_keys(keys))


def _new_passphrase(file: Path | None, encrypt: bool) -> str | None:
    given = given_passphrase(file)
    if given or not encrypt:
        return given
    return str(click.prompt("New passphrase for the keys", hide_input=True, confirmation_prompt=True, err=True))


def _key_files(keys: Path) -> tuple[list[str], list[str]]:
    """Names of the key files that belong offline, and of those that belong online."""
    from edgekit.trust.keys import key_path, private_keys
    from edgekit.trust.repository import ONLINE_ROLES

    online = [key_path(keys, role) for role in sorted(ONLINE_ROLES)]
    return [path.name for path in private_keys(keys) if path not in online], [path.name for path in online]


def _print_plan(
    store: Store, repository: Repository, manifests: Sequence[Any], deltas: Sequence[list[str]], as_json: bool
) -> None:
    from edgekit.manifest import target_path
    from edgekit.registry import blob_name

    models = repository.models()
    plan = []
    for manifest, versions in zip(manifests, deltas, strict=True):
        path = target_path(manifest.name, manifest.target, manifest.version)
        known = repository.check(manifest.canonical_bytes())
        missing = [entry for entry in manifest.files if not store.exists(blob_name(entry.sha256))]
        plan.append(
            {
                "path": path,
                "published": known is not None,
                "new_model": manifest.name not in models,
                "upload_files": len(missing),
                "upload_bytes": sum(entry.size for entry in missing),
                "deltas_from": versions,
            }
        )
    if as_json:
        print_json(plan)
        return
    rows = [[_cell(value) for value in row.values()] for row in plan]
    print_table(("path", "published already", "new model", "files to upload", "bytes to upload", "deltas from"), rows)


def _cell(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return str(value).lower() if isinstance(value, bool) else value


def _print_rows(rows: list[Row]) -> None:
    headers = ("model", "version", "target", "release", "digest", "channel", "state")
    print_table(
        headers,
        [
            (
                r.name,
                r.version,
                r.target,
                r.release,
                r.sha256[:12],
                r.channel or "-",
                "retired" if r.retired else "current",
            )
            for r in rows
        ],
    )
