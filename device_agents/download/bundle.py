"""Fills a folder with the files of a manifest: what is on the device, then deltas, then what must be fetched whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from device_agents.download.block_fetcher import MAX_WRONG, fetch_blob
from device_agents.download.block_file import SPARE_BYTES, BlockFile
from device_agents.download.deltas import DeltaFiller
from device_agents.threads import in_thread
from edgekit.bundle.manifest import FileEntry, Manifest
from edgekit.deltas.description import Offer
from edgekit.errors import DigestMismatchError, DiskError, RefusedError
from edgekit.protocols import BlockSource, Disk


class Download:
    """Fills a folder with the files of a manifest, from slots on this disk first and from `source` for the rest.

    Args:
        disk: Where to.
        source: Blocks that are not here.
        counters: `blocks_fetch.TRANSFER_COUNTERS`, which only rise; `blocks_reused` were on this disk already,
            `blocks_made` came out of deltas.
        budget: Bytes that may be fetched, wrong and repeated ones included; None for any number.
        offers: Deltas that the signed catalogue offers.
        check_cost: Called with `fetched` as it rises; raises where no more may be fetched for now.

    Attributes:
        fetched: Bytes that were.
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
        """Fetch every missing block of every file; what is verified stays, however this ends.

        Args:
            manifest: Names the files and the digest of each block.
            folder: Disk name of where they go.
            make_room: Called once, when there is not enough space; frees what can be spared.

        Raises:
            DiskError: there is not enough space (found before the first byte), or the disk failed.
            DigestMismatchError: the source sent a wrong block three times.
            RefusedError: the budget is spent.
            MeteredError: no more may be fetched over the link as it is.
            NotFoundError, TransportError: as the source.
        """
        await in_thread(self._prepare, manifest, folder, make_room)
        for entry in manifest.files:
            file = BlockFile(self._disk, f"{folder}/{entry.path}", entry)
            await in_thread(file.open)
            try:
                self._counters["blocks_reused"] += await in_thread(file.reuse)
                if self._offers:
                    await self._make(file, entry, folder)
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

    async def _make(self, file: BlockFile, entry: FileEntry, folder: str) -> None:
        filler = DeltaFiller(self._disk, self._offers, fetch_blob=self._fetch_blob, fetch_file=self._fetch)
        try:
            await filler.fill(file, entry, folder)
        finally:
            self._counters["blocks_made"] += filler.made
            self._counters["deltas_failed"] += filler.failed

    async def _fetch_blob(self, digest: str, length: int, what: str) -> bytes:
        self._check_cost(self.fetched)
        data = await fetch_blob(self._source, digest, length, what)
        self._count(len(data))
        return data

    async def _fetch(self, file: BlockFile, entry: FileEntry, only: Iterable[int] | None = None) -> None:
        """Fetch what is missing of a file, or of the blocks `only`."""
        wrong: Counter[int] = Counter()
        chosen = None if only is None else set(only)
        while wanted := [index for index in file.wanted() if chosen is None or index in chosen]:
            self._check_cost(self.fetched)
            blocks, left = self._source.blocks(entry.sha256, wanted, entry.blocks), len(wanted)
            try:
                async for index, data in blocks:
                    await self._take(file, index, data, wrong)
                    left -= 1
                    if left:  # the last one was paid for, and what it completes need not wait
                        self._check_cost(self.fetched)
            finally:
                if isinstance(blocks, AsyncGenerator):
                    await blocks.aclose()  # now, and not when it is collected: it holds request ids

    async def _take(self, file: BlockFile, index: int, data: bytes, wrong: Counter[int]) -> None:
        self._count(len(data))
        try:
            await in_thread(file.put, index, data)
            self._counters["blocks_fetched"] += 1
        except DigestMismatchError:
            self._counters["wrong_blocks"] += 1
            wrong[index] += 1
            if wrong[index] >= MAX_WRONG:
                raise

    def _count(self, size: int) -> None:
        self._counters["bytes_fetched"] += size
        self.fetched += size
        if self._budget is not None and self.fetched > self._budget:
            raise RefusedError(
                f"the deployment has fetched more than its budget, of which {self._budget} bytes were left",
                advice="Something damages or loses most blocks on their way; a larger download_budget allows more.",
            )
