"""Finds blocks by digest in any slot of any model on this device.

A new version shares most blocks with the previous one when little was retrained, and models of one family share blocks
with each other, at any position in a file. A manifest in a slot only says where a block may be: the caller hashes each
block, like a block from the network.
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


class BlockLocation(NamedTuple):
    """Where a block may be: disk name of the file, and offset in bytes."""

    name: str
    offset: int


def find_blocks(disk: Disk, wanted: Set[str]) -> dict[str, list[BlockLocation]]:
    """Locations of every wanted block (sha256, hex) in the slots of this disk; other blocks take no memory."""
    locations: dict[str, list[BlockLocation]] = {}
    for folder, manifest in slot_manifests(disk):
        for digest, location in _blocks(folder, manifest):
            if digest in wanted:
                locations.setdefault(digest, []).append(location)
    return locations


def slot_manifests(disk: Disk) -> Iterator[tuple[str, Manifest]]:
    """Disk name and manifest of every slot with a readable manifest; its files are not verified."""
    for folder in slot_folders(disk):
        manifest = _manifest(disk, folder)
        if manifest is not None:
            yield folder, manifest


def read_location(disk: Disk, location: BlockLocation, length: int) -> bytes:
    """The bytes at a location; empty when it cannot be read, because a slot may be emptied at any time."""
    try:
        return disk.read_at(location.name, location.offset, length)
    except (FileNotFoundError, DiskError) as error:
        log.debug("%s is skipped: %s", location.name, error)
        return b""


def _blocks(folder: str, manifest: Manifest) -> Iterator[tuple[str, BlockLocation]]:
    for entry in manifest.files:
        for index, digest in enumerate(entry.blocks):
            yield digest, BlockLocation(f"{folder}/{entry.path}", index * BLOCK_BYTES)


def _manifest(disk: Disk, folder: str) -> Manifest | None:
    try:
        return parse_manifest(disk.read(f"{folder}/{MANIFEST_NAME}"))
    except FileNotFoundError:
        return None  # the slot is empty, or is about to be filled
    except (DiskError, ManifestError) as error:
        log.warning("slot %s is not searched for blocks: %s", folder, error)
        return None
