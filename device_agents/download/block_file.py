"""A file that is filled block by block: each block is checked before it is written, and a cut loses a few at most."""

from __future__ import annotations

import hashlib
import logging

from device_agents.download.local_blocks import find_blocks, read_place
from edgekit.bundle.manifest import BLOCK_BYTES, FileEntry
from edgekit.errors import DataError, DigestMismatchError
from edgekit.protocols import Disk
from edgekit.transfer.blocks import BlockMap

log = logging.getLogger(__name__)

SYNC_EVERY_BLOCKS = 64
SPARE_BYTES = 1024 * 1024


class BlockFile:
    """One artifact on its way: the preallocated file, and its block map beside it.

    Args:
        disk: Where it is written.
        name: Disk name of the file; the map has the suffix ``.map``.
        entry: What the signed manifest says about it.
    """

    MAP_SUFFIX = ".map"

    def __init__(self, disk: Disk, name: str, entry: FileEntry) -> None:
        self._disk, self._name, self._entry = disk, name, entry
        self._unsaved = 0
        self._places: dict[str, list[int]] = {}
        for index, digest in enumerate(entry.blocks):
            self._places.setdefault(digest, []).append(index)
        self.blocks = BlockMap(entry.size)

    def open(self) -> None:
        """Take up what an earlier attempt left, each present block hashed anew; or reserve the space."""
        self.blocks = self._restored()
        if not self._disk.exists(self._name) or self._disk.size(self._name) != self._entry.size:
            self._disk.preallocate(self._name, self._entry.size)
            self.blocks = BlockMap(self._entry.size)
        for index in range(self.blocks.count):
            if index in self.blocks and not self._matches(index, self._read(self._name, index)):
                self.blocks.clear(index)

    def wanted(self) -> list[int]:
        """Missing blocks, in order; of those with the same content only the first."""
        return sorted({self._entry.blocks[index]: index for index in reversed(self.blocks.missing())}.values())

    def put(self, index: int, data: bytes) -> None:
        """Check one block and write it wherever the file has the same content.

        Raises:
            DigestMismatchError: it is not the block that the manifest names.
            DiskError: the disk failed.
        """
        if not self._matches(index, data):
            found = hashlib.sha256(data).hexdigest()
            what = f"block {index} of {self._entry.path} (sha256 {self._entry.sha256})"
            raise DigestMismatchError(what, expected=self._entry.blocks[index], found=found)
        for place in self._places[self._entry.blocks[index]]:
            if place not in self.blocks:
                self._disk.write_at(self._name, place * BLOCK_BYTES, data)
                self.blocks.mark(place)
                self._unsaved += 1
        if self._unsaved >= SYNC_EVERY_BLOCKS:
            self.save()

    def save(self) -> None:
        """Make the blocks durable, and then the map that says so."""
        self._disk.sync(self._name)
        self._disk.write(self._name + self.MAP_SUFFIX, self.blocks.to_bytes())
        self._unsaved = 0

    def reuse(self) -> int:
        """Take every missing block that some slot of this disk holds; returns how many of this file's that were."""
        before = self.blocks.present
        wanted = self.wanted()
        found = find_blocks(self._disk, {self._entry.blocks[index] for index in wanted})
        for index in wanted:
            _, length = self.blocks.span(index)
            for place in found.get(self._entry.blocks[index], ()):
                data = read_place(self._disk, place, length)
                if self._matches(index, data):
                    self.put(index, data)
                    break
        return self.blocks.present - before

    def _restored(self) -> BlockMap:
        try:
            return BlockMap.from_bytes(self._entry.size, self._disk.read(self._name + self.MAP_SUFFIX))
        except FileNotFoundError:
            return BlockMap(self._entry.size)
        except DataError as error:
            log.warning("%s starts from nothing: %s", self._name, error)
            return BlockMap(self._entry.size)

    def _read(self, name: str, index: int) -> bytes:
        offset, length = self.blocks.span(index)
        return self._disk.read_at(name, offset, length)

    def _matches(self, index: int, data: bytes) -> bool:
        _, length = self.blocks.span(index)
        return len(data) == length and hashlib.sha256(data).hexdigest() == self._entry.blocks[index]
