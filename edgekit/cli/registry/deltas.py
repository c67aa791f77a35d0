"""The deltas that `edgekit registry publish` makes; the rules are in `edgekit.registry.deltas`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.common.console import ProgressLine, note, step
from edgekit.cli.common.fleet import registry_reader
from edgekit.settings import ControlSettings

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest
    from edgekit.registry import CatalogueEntry, MadeDelta, RegistryReader
    from edgekit.registry.deltas import BaseChoice
    from edgekit.state import DeviceView


def deltas_for(
    settings: ControlSettings, bundle: Path, manifest: Manifest, named: Sequence[str], devices: Sequence[DeviceView]
) -> list[MadeDelta]:
    """Make the deltas of a bundle that is about to be published, and print their sizes on stderr.

    Args:
        settings: Name the registry.
        bundle: Folder of the bundle.
        manifest: Its manifest.
        named: Versions that the user named; see `edgekit.registry.deltas.choose_bases`.
        devices: The devices of the fleet, as far as they are known here.

    Raises:
        NotFoundError: a named version is not published for this target.
    """
    choice = _choose(manifest, named, devices)
    if not choice.versions:
        return []
    from edgekit.registry.deltas import make_deltas

    with registry_reader(settings) as reader:
        bases = _find(reader, manifest, choice)
        label = f"Making deltas of {manifest.name} {manifest.version} for {manifest.target}"
        with step(label):
            made = make_deltas(reader, bundle, manifest, bases, progress=ProgressLine(label))
    size = manifest.file("model").size
    for row, delta in made:
        result = (
            f"{delta.offer.size + delta.offer.length} of {size} bytes" if delta else "none, it would save too little"
        )
        note(f"delta from {row.version}: {result}")
    return [delta for _, delta in made if delta]


def planned_deltas(
    settings: ControlSettings, manifest: Manifest, named: Sequence[str], devices: Sequence[DeviceView]
) -> list[str]:
    """Versions from which `deltas_for` would try to make a delta; arguments and errors as there."""
    choice = _choose(manifest, named, devices)
    if not choice.versions:
        return []
    with registry_reader(settings) as reader:
        return [row.version for row in _find(reader, manifest, choice)]


def _choose(manifest: Manifest, named: Sequence[str], devices: Sequence[DeviceView]) -> BaseChoice:
    from edgekit.registry.deltas import choose_bases

    choice = choose_bases(manifest, named, () if named else [(one.target, one.models) for one in devices])
    if choice.reason:
        note(f"no deltas: {choice.reason}")
    return choice


def _find(reader: RegistryReader, manifest: Manifest, choice: BaseChoice) -> list[CatalogueEntry]:
    from edgekit.registry.deltas import find_chosen_bases

    bases, reason = find_chosen_bases(reader, manifest, choice)
    if reason:
        note(f"no deltas: {reason}")
    return bases
