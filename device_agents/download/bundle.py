"""Downloads the files of a manifest: blocks on this device first, then deltas, then blocks from the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from device_agents.download.block_fetcher import MAX_WRONG_BLOCKS, fetch_blob
from device_agents.download.block_file import SPARE_BYTES, BlockFile
from device_agents.download.deltas import DeltaFiller
from device_agents.threads import in_thread
from edgekit.bundle.manifest import FileEntry, Manifest
from edgekit.deltas.description import Offer
from edgekit.errors import DigestMismatchError, RefusedError, SpaceError
from edgekit.protocols import BlockSource, Disk


class BundleDownload:
    """Downloads the files of a manifest into a folder: blocks from slots on this disk first, the rest from `source`.

    Args:
        disk: Disk that is written to.
        source: Source of the blocks that this disk does not have.
        counters: `block_fetcher.TRANSFER_COUNTERS`, which only rise. `blocks_reused` counts blocks from slots,
            `blocks_made` blocks from deltas.
        budget: Bytes that may be fetched, wrong and repeated blocks included; None for no limit.
        offers: Deltas that the signed catalogue offers.
        check_cost: Called with `fetched` each time it rises; raises when no more may be fetched at present.

    Attributes:
        fetched: Bytes fetched by this download, with those that were wrong or came twice.
    """

    def __init__(
        self,
        disk: Disk,
        source: BlockSource,
        counters: Counter[str],
        *,
        budget: int | None = None,
        offers: Sequence[Offer] = (),
        check_cost: Callable[[int], None] | None = None,
    ) -> None:
        self._check_cost = check_cost or (lambda fetched: None)
        self._disk, self._source = disk, source
        self._counters, self._budget, self._offers = counters, budget, offers
        self.fetched = 0

    async def run(self, manifest: Manifest, folder: str, *, make_room: Callable[[], None]) -> None:
        """Fetch every missing block of every file. Verified blocks are kept when this fails.

        Args:
            manifest: Manifest with the files and the digest of each block.
            folder: Disk name of the target folder.
            make_room: Called once when there is not enough space; frees the space that can be spared.

        Raises:
            SpaceError: there is not enough space; this is found, and all space is reserved, before the first byte.
            DiskError: the disk failed.
            DigestMismatchError: the source sent a wrong block three times.
            RefusedError: the budget is spent.
            MeteredError: no more may be fetched over the metered link.
            NotFoundError, TransportError: as the source.
        """
        await in_thread(self._prepare, manifest, folder, make_room)
        for entry in manifest.files:
            file = BlockFile(self._disk, f"{folder}/{entry.path}", entry)
            await in_thread(file.open)
            try:
                self._counters["blocks_reused"] += await in_thread(file.reuse)
                if self._offers:
                    await self._make_from_delta(file, entry, folder)
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
            raise SpaceError(
                f"{manifest.name} {manifest.version} needs {needed} bytes of disk, {free} are free",
                advice="Free some space on the device.",
            )
        for entry in manifest.files:  # all of them now: other models are downloaded at the same time
            name = f"{folder}/{entry.path}"
            if self._unreserved(name, entry):
                self._disk.preallocate(name, entry.size)

    def _unreserved(self, name: str, entry: FileEntry) -> int:
        return max(0, entry.size - self._disk.size(name)) if self._disk.exists(name) else entry.size

    async def _make_from_delta(self, file: BlockFile, entry: FileEntry, folder: str) -> None:
        filler = DeltaFiller(self._disk, self._offers, fetch_blob=self._fetch_blob, fetch_file=self._fetch)
        try:
            await filler.fill(file, entry, folder)
        finally:
            self._counters["blocks_made"] += filler.made
            self._counters["deltas_failed"] += filler.failed

    async def _fetch_blob(self, digest: str, length: int, name: str) -> bytes:
        self._check_cost(self.fetched)
        return await fetch_blob(self._source, digest, length, name, count=self._count)

    async def _fetch(self, file: BlockFile, entry: FileEntry, only: Iterable[int] | None = None) -> None:
        """Fetch the missing blocks of a file, or those of them that are in `only`."""
        wrong: Counter[int] = Counter()
        chosen = None if only is None else set(only)
        while wanted := [index for index in file.wanted() if chosen is None or index in chosen]:
            self._check_cost(self.fetched)
            blocks = self._source.blocks(entry.sha256, wanted, entry.blocks, wasted=self._waste)
            left = len(wanted)
            try:
                async for index, data in blocks:
                    await self._write(file, index, data, wrong)
                    left -= 1
                    if left:  # after the last block no more is fetched
                        self._check_cost(self.fetched)
            finally:
                if isinstance(blocks, AsyncGenerator):
                    await blocks.aclose()  # at once, because it holds request ids

    async def _write(self, file: BlockFile, index: int, data: bytes, wrong: Counter[int]) -> None:
        self._count(len(data))
        try:
            await in_thread(file.put, index, data)
            self._counters["blocks_fetched"] += 1
        except DigestMismatchError:
            self._counters["wrong_blocks"] += 1
            wrong[index] += 1
            if wrong[index] >= MAX_WRONG_BLOCKS:
                raise

    def _waste(self, size: int) -> None:
        """Count bytes that are no blocks of the file; the next block that arrives meets the budget."""
        self._counters["bytes_wasted"] += size
        self.fetched += size

    def _count(self, size: int) -> None:
        self._counters["bytes_fetched"] += size
        self.fetched += size
        if self._budget is not None and self.fetched > self._budget:
            raise RefusedError(
                f"the deployment has fetched more than its budget, of which {self._budget} bytes were left",
                advice="Most blocks were damaged or lost in transfer. Check the link, or set a larger download_budget.",
            )
