"""Blocks that this device holds already, found by their digests in any slot of any model.

A new version shares most of its bytes with the one before where little was retrained, and models of one family share
them with each other, wherever in a file they stand. Manifests in slots only say where to look: whoever copies a block
hashes it like one from the network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Set
from typing import NamedTuple

from device_agents.storage.slots import slot_folders
from edgekit.bundle.manifest import BLOCK_BYTES, MANIFEST_NAME, Manifest, parse_manifest
from edgekit.errors import DiskError, ManifestError
from edgekit.protocols import Disk

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a block may be: disk name of the file, and offset in bytes."""

    name: str
    offset: int


def find_blocks(disk: Disk, wanted: Set[str]) -> dict[str, list[Place]]:
    """Places of every wanted block (sha256, hex) in the slots of this disk; only the wanted ones are kept in memory."""
    found: dict[str, list[Place]] = {}
    for folder, manifest in slot_manifests(disk):
        for digest, place in _blocks(folder, manifest):
            if digest in wanted:
                found.setdefault(digest, []).append(place)
    return found


def slot_manifests(disk: Disk) -> Iterator[tuple[str, Manifest]]:
    """Every slot that says what it holds: its disk name and its manifest, which is only a hint."""
    for folder in slot_folders(disk):
        manifest = _manifest(disk, folder)
        if manifest is not None:
            yield folder, manifest


def read_place(disk: Disk, place: Place, length: int) -> bytes:
    """What stands there now; empty when it cannot be read, since a slot may be emptied at any time."""
    try:
        return disk.read_at(place.name, place.offset, length)
    except (FileNotFoundError, DiskError) as error:
        log.debug("%s is passed over: %s", place.name, error)
        return b""


def _blocks(folder: str, manifest: Manifest) -> Iterator[tuple[str, Place]]:
    for entry in manifest.files:
        for index, digest in enumerate(entry.blocks):
            yield digest, Place(f"{folder}/{entry.path}", index * BLOCK_BYTES)


def _manifest(disk: Disk, folder: str) -> Manifest | None:
    try:
        return parse_manifest(disk.read(f"{folder}/{MANIFEST_NAME}"))
    except FileNotFoundError:
        return None  # empty, or about to be filled
    except (DiskError, ManifestError) as error:
        log.warning("slot %s gives no blocks: %s", folder, error)
        return None
