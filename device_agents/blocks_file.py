"""A file that is filled block by block: each block is checked before it is written, and a cut loses a few at most."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable

from device_agents.blocks_fetch import MAX_WRONG
from device_agents.blocks_local import find_blocks, read_place
from device_agents.threads import in_thread
from edgekit.blocks import BlockMap
from edgekit.errors import DataError, DigestMismatchError, DiskError, RefusedError
from edgekit.manifest import BLOCK_BYTES, FileEntry, Manifest
from edgekit.protocols import BlockSource, Disk

log = logging.getLogger(__name__)

SYNC_EVERY_BLOCKS = 64
SPARE_BYTES = 1024 * 1024
MAP_SUFFIX = ".map"
TRANSFER_COUNTERS = ("blocks_fetched", "bytes_fetched", "blocks_reused", "wrong_blocks")


class BlockFile:
    """One artifact on its way: the preallocated file, and its block map beside it.

    Args:
        disk: Where it is written.
        name: Disk name of the file; the map has the suffix ``.map``.
        entry: What the signed manifest says about it.
    """

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
        self._disk.write(self._name + MAP_SUFFIX, self.blocks.to_bytes())
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
            return BlockMap.from_bytes(self._entry.size, self._disk.read(self._name + MAP_SUFFIX))
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


class Download:
    """Fills a folder with the files of a manifest, from slots on this disk first and from `source` for the rest.

    Args:
        disk: Where to.
        source: Blocks that are not here.
        counters: TRANSFER_COUNTERS, which only rise; `blocks_reused` were on this disk already.
        budget: Bytes that may be fetched, wrong and repeated ones included; None for any number.

    Attributes:
        fetched: Bytes that were.
    """

    def __init__(self, disk: Disk, source: BlockSource, counters: Counter[str], *, budget: int | None = None) -> None:
        self._disk, self._source = disk, source
        self._counters, self._budget = counters, budget
        self.fetched = 0

    async def run(self, manifest: Manifest, folder: str, *, make_room: Callable[[], None]) -> None:
        """Fetch every missing block of every file; what is verified stays, however this ends.

        Args:
            manifest: Names the files and the digest of each block.
            folder: Disk name of where they go.
            make_room: Called once, when there is not enough space; frees what can be spared.

        Raises:
            DiskError: there is not enough space (found before the first byte), or the disk failed.
            DigestMismatchError: the source sent a wrong block three times.
            RefusedError: the budget is spent.
            NotFoundError, TransportError: as the source.
        """
        await in_thread(self._prepare, manifest, folder, make_room)
        for entry in manifest.files:
            file = BlockFile(self._disk, f"{folder}/{entry.path}", entry)
            await in_thread(file.open)
            try:
                self._counters["blocks_reused"] += await in_thread(file.reuse)
                await self._fetch(file, entry)
            finally:
                await in_thread(file.save)

    def _prepare(self, manifest: Manifest, folder: str, make_room: Callable[[], None]) -> None:
        self._disk.make_folder(folder)
        needed = SPARE_BYTES + sum(self._unreserved(f"{folder}/{entry.path}", entry) for entry in manifest.files)
        if self._disk.free_bytes() < needed:
            make_room()
        free = self._disk.free_bytes()
        if free < needed:
            raise DiskError(
                f"{manifest.name} {manifest.version} needs {needed} bytes of disk, {free} are free",
                advice="Free some space on the device.",
            )

    def _unreserved(self, name: str, entry: FileEntry) -> int:
        return max(0, entry.size - self._disk.size(name)) if self._disk.exists(name) else entry.size

    async def _fetch(self, file: BlockFile, entry: FileEntry) -> None:
        wrong: Counter[int] = Counter()
        while not file.blocks.done:
            blocks = self._source.blocks(entry.sha256, file.wanted())
            try:
                async for index, data in blocks:
                    await self._take(file, index, data, wrong)
            finally:
                if isinstance(blocks, AsyncGenerator):
                    await blocks.aclose()  # now, and not when it is collected: it holds request ids

    async def _take(self, file: BlockFile, index: int, data: bytes, wrong: Counter[int]) -> None:
        self._counters["bytes_fetched"] += len(data)
        self.fetched += len(data)
        if self._budget is not None and self.fetched > self._budget:
            raise RefusedError(
                f"the deployment has fetched more than its budget, of which {self._budget} bytes were left",
                advice="Something damages or loses most blocks on their way; a larger download_budget allows more.",
            )
        try:
            await in_thread(file.put, index, data)
            self._counters["blocks_fetched"] += 1
        except DigestMismatchError:
            self._counters["wrong_blocks"] += 1
            wrong[index] += 1
            if wrong[index] >= MAX_WRONG:
                raise
