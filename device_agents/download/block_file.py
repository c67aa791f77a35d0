"""A file that is filled block by block. Each block is checked before it is written; a power cut loses the last few."""

from __future__ import annotations

import hashlib
import logging

from device_agents.download.local_blocks import find_blocks, read_location
from edgekit.bundle.manifest import BLOCK_BYTES, FileEntry
from edgekit.errors import DataError, DigestMismatchError
from edgekit.protocols import Disk
from edgekit.transfer.blocks import BlockMap

log = logging.getLogger(__name__)

SYNC_EVERY_BLOCKS = 64
SPARE_BYTES = 1024 * 1024


class BlockFile:
    """A partly downloaded file: the preallocated file, and the map of its present blocks beside it.

    Args:
        disk: Disk that it is written to.
        name: Disk name of the file; the map has the suffix ``.map``.
        entry: Its entry in the signed manifest.

    Attributes:
        blocks: Map of the present blocks.
    """

    MAP_SUFFIX = ".map"

    def __init__(self, disk: Disk, name: str, entry: FileEntry) -> None:
        self._disk, self._name, self._entry = disk, name, entry
        self._unsaved = 0
        self._indexes: dict[str, list[int]] = {}  # digest -> blocks with this content
        for index, digest in enumerate(entry.blocks):
            self._indexes.setdefault(digest, []).append(index)
        self.blocks = BlockMap(entry.size)

    def open(self) -> None:
        """Reuse the blocks of an earlier attempt, each hashed again; or reserve the space."""
        self.blocks = self._read_map()
        if not self._disk.exists(self._name) or self._disk.size(self._name) != self._entry.size:
            self._disk.preallocate(self._name, self._entry.size)
            self.blocks = BlockMap(self._entry.size)
        for index in range(self.blocks.count):
            if index in self.blocks and not self._matches(index, self._read(self._name, index)):
                self.blocks.clear(index)

    def wanted(self) -> list[int]:
        """Missing blocks, in order; of several blocks with the same content only the first."""
        return sorted({self._entry.blocks[index]: index for index in reversed(self.blocks.missing())}.values())

    def put(self, index: int, data: bytes) -> None:
        """Check one block, and write it at every index that has the same content.

        Raises:
            DigestMismatchError: the data is not the block that the manifest names.
            DiskError: the disk failed.
        """
        if not self._matches(index, data):
            found = hashlib.sha256(data).hexdigest()
            name = f"block {index} of {self._entry.path} (sha256 {self._entry.sha256})"
            raise DigestMismatchError(name, expected=self._entry.blocks[index], found=found)
        self._write(index, data)

    def _write(self, index: int, data: bytes) -> None:
        """Write a checked block at every index that has the same content."""
        for same in self._indexes[self._entry.blocks[index]]:
            if same not in self.blocks:
                self._disk.write_at(self._name, same * BLOCK_BYTES, data)
                self.blocks.mark(same)
                self._unsaved += 1
        if self._unsaved >= SYNC_EVERY_BLOCKS:
            self.save()

    def save(self) -> None:
        """Make the blocks durable, and after them the map."""
        self._disk.sync(self._name)
        self._disk.write(self._name + self.MAP_SUFFIX, self.blocks.to_bytes())
        self._unsaved = 0

    def reuse(self) -> int:
        """Copy every missing block that a slot of this disk has; returns how many blocks became present."""
        before = self.blocks.present
        wanted = self.wanted()
        locations = find_blocks(self._disk, {self._entry.blocks[index] for index in wanted})
        for index in wanted:
            _, length = self.blocks.span(index)
            for location in locations.get(self._entry.blocks[index], ()):
                data = read_location(self._disk, location, length)
                if self._matches(index, data):
                    self._write(index, data)
                    break
        return self.blocks.present - before

    def _read_map(self) -> BlockMap:
        try:
            return BlockMap.from_bytes(self._entry.size, self._disk.read(self._name + self.MAP_SUFFIX))
        except FileNotFoundError:
            return BlockMap(self._entry.size)
        except DataError as error:
            log.warning("%s is fetched from its beginning: %s", self._name, error)
            return BlockMap(self._entry.size)

    def _read(self, name: str, index: int) -> bytes:
        offset, length = self.blocks.span(index)
        return self._disk.read_at(name, offset, length)

    def _matches(self, index: int, data: bytes) -> bool:
        _, length = self.blocks.span(index)
        return len(data) == length and hashlib.sha256(data).hexdigest() == self._entry.blocks[index]
