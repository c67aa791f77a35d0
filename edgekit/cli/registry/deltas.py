"""From which versions `edgekit registry publish` makes deltas: those that are named, or those that the fleet runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.console import Progress, note, step
from edgekit.cli.fleet import fleet_state, registry_reader
from edgekit.errors import EdgekitError, NotFoundError
from edgekit.settings import ControlSettings

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest
    from edgekit.registry import MadeDelta, RegistryReader, Row

NONE = "none"
MOST_AUTOMATIC = 4
_SQLITE = "sqlite:///"


def deltas_for(settings: ControlSettings, bundle: Path, manifest: Manifest, named: tuple[str, ...]) -> list[MadeDelta]:
    """Deltas of a bundle that is about to be published, told on stderr.

    Args:
        named: Versions; with none, the versions of the model that most devices of the fleet run on this target, where
            the fleet's database is at hand; ``none`` makes no delta.

    Raises:
        NotFoundError: a named version is not published for this target.
    """
    versions = _versions(settings, manifest, named)
    if not versions:
        return []
    from edgekit.registry.deltas import make_deltas

    with registry_reader(settings) as reader:
        bases = _bases(reader, manifest, versions, named)
        label = f"Making deltas of {manifest.name} {manifest.version} for {manifest.target}"
        with step(label):
            made = make_deltas(reader, bundle, manifest, bases, progress=Progress(label))
    for row, delta in made:
        size = manifest.file("model").size
        said = f"{delta.offer.size + delta.offer.length} of {size} bytes" if delta else "none, it would save too little"
        note(f"delta from {row.version}: {said}")
    return [delta for _, delta in made if delta]


def planned_deltas(settings: ControlSettings, manifest: Manifest, named: tuple[str, ...]) -> list[str]:
    """Versions from which `deltas_for` would try to make one; arguments and errors as there. Makes none."""
    versions = _versions(settings, manifest, named)
    if not versions:
        return []
    with registry_reader(settings) as reader:
        return [row.version for row in _bases(reader, manifest, versions, named)]


def _versions(settings: ControlSettings, manifest: Manifest, named: tuple[str, ...]) -> tuple[str, ...]:
    if NONE in named:
        return ()
    versions = named or tuple(_running(settings, manifest))
    if versions and manifest.sealed is not None:
        note("no deltas: what is encrypted under two keys has nothing in common")
        return ()
    return versions


def _bases(reader: RegistryReader, manifest: Manifest, versions: tuple[str, ...], named: tuple[str, ...]) -> list[Row]:
    from edgekit.registry.deltas import find_bases

    try:
        return find_bases(reader, manifest, versions)
    except NotFoundError as error:
        if named:
            raise
        note(f"no deltas: {error}")
        return []


def _running(settings: ControlSettings, manifest: Manifest) -> list[str]:
    """Versions of the model that devices of this target run, the most usual first."""
    path = settings.database.removeprefix(_SQLITE)
    if settings.database.startswith(_SQLITE) and not Path(path).exists():
        return []  # no fleet is kept here, and asking must not make one
    try:
        with fleet_state(settings) as state:
            views = state.devices.views(0.0, 0.0)
    except EdgekitError as error:
        note(f"the fleet is not asked which versions it runs: {error}")
        return []
    versions = Counter(
        view.models[manifest.name].version
        for view in views
        if view.target == manifest.target and manifest.name in view.models
    )
    usual = [version for version, _ in versions.most_common() if version not in ("", manifest.version)]
    return usual[:MOST_AUTOMATIC]
