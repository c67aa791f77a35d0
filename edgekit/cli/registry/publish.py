"""`edgekit registry publish`: check, upload and sign bundles, or print the plan."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.common.console import (
    ProgressLine,
    dry_run_option,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
    step,
)
from edgekit.cli.common.fleet import known_devices, registry_reader
from edgekit.cli.common.passphrase import passphrase_option
from edgekit.cli.registry.deltas import deltas_for, planned_deltas
from edgekit.cli.registry.options import opened, passphrase_of, registry_options
from edgekit.cli.registry.sealing import encrypt_option, sealed_copies
from edgekit.errors import EdgekitError
from edgekit.settings import ControlSettings

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest
    from edgekit.protocols import Store
    from edgekit.state import DeviceView
    from edgekit.trust.repository import Repository


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--delta-from",
    "delta_from",
    metavar="VERSION",
    multiple=True,
    help="Make a delta from VERSION, so that devices that run it download less (may be repeated). "
    "Default: the versions that most devices of the fleet run, if its database can be read here; 'none': no delta.",
)
@encrypt_option
@registry_options
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
    phrase = functools.cache(passphrase_of(passphrase_file))  # prompts at most once
    settings, store, repository = opened(url, keys, phrase)
    with needs_extra("registry"):
        from edgekit.registry import check_bundle
        from edgekit.registry import publish as publish_bundle
    checked = [check_bundle(bundle) for bundle in bundles]  # check all bundles before publishing the first one
    done = []
    with sealed_copies(
        bundles, checked, encrypt_for, settings.keys, lambda: phrase(settings.keys), dry_run=dry_run
    ) as (folders, manifests):
        devices = known_devices(settings)
        _note_too_old(devices, manifests)
        _note_lower(settings, manifests)
        if dry_run:
            planned = [planned_deltas(settings, manifest, delta_from, devices) for manifest in manifests]
            _print_plan(store, repository, manifests, planned, as_json)
            return
        for folder, manifest in zip(folders, manifests, strict=True):
            label = f"Publishing {manifest.name} {manifest.version} for {manifest.target}"
            deltas = deltas_for(settings, folder, manifest, delta_from, devices)
            with step(label):
                release = publish_bundle(store, repository, folder, deltas=deltas, progress=ProgressLine(label))
            done.append(release.entry)
    if as_json:
        print_json(done)
        return
    headers = ("model", "version", "target", "release", "digest")
    print_table(headers, [(e.name, e.version, e.target, e.release, e.sha256[:12]) for e in done])


def _note_too_old(devices: Sequence[DeviceView], manifests: Sequence[Manifest]) -> None:
    """Name the devices of the fleet that could not read a bundle; they keep what they run until they are updated."""
    from edgekit.bundle.readers import too_old

    for manifest in manifests:
        old = too_old(manifest, {one.device: one.edgekit for one in devices if one.target == manifest.target})
        if old:
            note(f"{manifest.name} {manifest.version} for {manifest.target}: {old.message}")


def _note_lower(settings: ControlSettings, manifests: Sequence[Manifest]) -> None:
    """Name the versions that are lower than a published one: devices that have run that one refuse them."""
    from edgekit.bundle.order import version_order

    try:
        with registry_reader(settings) as reader:
            rows = [row for row in reader.list() if not row.retired]
    except EdgekitError:
        return  # publishing reports what is wrong with the registry
    for manifest in manifests:
        others = [row.version for row in rows if (row.name, row.target) == (manifest.name, manifest.target)]
        highest = max(others, key=version_order, default="")
        if version_order(manifest.version) < version_order(highest):
            note(
                f"{manifest.name} {manifest.version} for {manifest.target} is lower than {highest}, which is "
                "published: devices that have run a higher version refuse it as a downgrade"
            )


def _print_plan(
    store: Store, repository: Repository, manifests: Sequence[Any], deltas: Sequence[list[str]], as_json: bool
) -> None:
    from edgekit.bundle.manifest import target_path
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
