"""`edgekit registry list`, `show`, `promote`, `retire` and `allow-downgrade`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.common.console import control_settings, dry_run_option, json_option, note, print_json, print_table
from edgekit.cli.common.fleet import registry_reader
from edgekit.cli.common.passphrase import passphrase_option
from edgekit.cli.registry.options import opened, passphrase_of, registry_options
from edgekit.errors import NotFoundError

if TYPE_CHECKING:
    from edgekit.registry import CatalogueEntry


@click.command(name="list")
@registry_options
@json_option
def list_command(url: str | None, keys: Path | None, as_json: bool) -> None:
    """List all published bundles.

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
        note("The registry has no bundle yet. Publish one: edgekit registry publish BUNDLE")


@click.command()
@click.argument("name")
@click.argument("version", required=False)
@registry_options
@json_option
def show(name: str, version: str | None, url: str | None, keys: Path | None, as_json: bool) -> None:
    """Show the published versions of the model NAME, or one VERSION with its files.

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
        for one in release.evidence:
            looked = f", {one.samples:,} samples" if one.samples else ""
            click.echo(f"  evidence {one.outcome} with {one.compared} on {one.arch}{looked}, report {one.report[:12]}")


@click.command()
@click.argument("name")
@click.argument("version")
@click.argument("channel")
@registry_options
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
    """Promote a version to a CHANNEL, for example stable.

    \b
    Example:
      edgekit registry promote digits 1.0.0 stable
    """
    _mark(url, keys, passphrase_file, dry_run, as_json, name, version, channel=channel)


@click.command()
@click.argument("name")
@click.argument("version")
@registry_options
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
    """Retire a version: it is chosen only when it is named. Devices that run it keep it.

    \b
    Example:
      edgekit registry retire digits 1.0.0
    """
    _mark(url, keys, passphrase_file, dry_run, as_json, name, version, retired=True)


@click.command(name="allow-downgrade")
@click.argument("name")
@click.argument("version")
@click.option("--no-more", is_flag=True, help="Withdraw the permission.")
@registry_options
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
    """Allow devices that ran a newer release to go back to a version. The rollout must also use --downgrade.

    \b
    Example:
      edgekit registry allow-downgrade digits 1.0.0
      edgekit rollout start digits 1.0.0 --downgrade
    """
    _mark(url, keys, passphrase_file, dry_run, as_json, name, version, downgrade=not no_more)


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
    _, _, repository = opened(url, keys, passphrase_of(passphrase_file))
    paths = repository.mark(name, version, dry_run=dry_run, **custom)
    if as_json:
        print_json({"changed": paths, "dry_run": dry_run, **custom})
        return
    if dry_run:
        note("Dry run, nothing was changed. Would change:")
    for path in paths:
        click.echo(f"{path}: {', '.join(f'{key} {value}'.lower() for key, value in custom.items())}")


def _print_rows(rows: list[CatalogueEntry]) -> None:
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
