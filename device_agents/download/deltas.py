"""Makes missing blocks from a delta and a file on this device. Blocks of a failed delta are fetched whole."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from device_agents.download.block_file import SPARE_BYTES, BlockFile
from device_agents.download.local_blocks import slot_manifests
from device_agents.storage.slots import verify_file
from device_agents.threads import in_thread
from edgekit.bundle.manifest import BLOCK_BYTES, FileEntry
from edgekit.deltas.description import SEGMENT_BLOCKS, Delta, Offer, parse_delta, payload_blocks, segments_of
from edgekit.errors import DataError, DigestMismatchError, DiskError, MissingExtraError, NotFoundError
from edgekit.protocols import Disk

log = logging.getLogger(__name__)

OFFERS_NAME = "_deltas"  # no file of a bundle can have this name
PAYLOAD_NAME = "_payload"
WIN_SHARE = 0.9  # a delta must need at most this share of the missing bytes to be used

FetchBlob = Callable[[str, int, str], Awaitable[bytes]]
FetchFile = Callable[[BlockFile, FileEntry, Iterable[int]], Awaitable[None]]


def save_offers(disk: Disk, folder: str, offers: Sequence[Offer]) -> None:
    """Write the offered deltas beside the downloaded files, for use after a restart."""
    if offers:
        disk.write(f"{folder}/{OFFERS_NAME}", msgspec.msgpack.encode(offers))


def load_offers(disk: Disk, folder: str) -> tuple[Offer, ...]:
    """The deltas that `save_offers` wrote; empty when the file is missing or damaged, because deltas are optional."""
    try:
        return msgspec.msgpack.decode(disk.read(f"{folder}/{OFFERS_NAME}"), type=tuple[Offer, ...])
    except FileNotFoundError:
        return ()
    except (DiskError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("the deltas of %s are not used: %s", folder, error)
        return ()


class DeltaFiller:
    """Fills missing blocks of a block file from a delta.

    Args:
        disk: Disk with the bases, the payload and the result.
        offers: Deltas that the signed catalogue offers.
        fetch_blob: Fetches a small blob by digest, length and a name for messages.
        fetch_file: Fetches the named blocks of a block file.

    Attributes:
        made: Count of blocks that were made.
        failed: Count of deltas that failed after they were begun.
    """

    def __init__(self, disk: Disk, offers: Sequence[Offer], *, fetch_blob: FetchBlob, fetch_file: FetchFile) -> None:
        self._disk, self._offers = disk, offers
        self._fetch_blob, self._fetch_file = fetch_blob, fetch_file
        self.made = 0
        self.failed = 0

    async def fill(self, file: BlockFile, entry: FileEntry, folder: str) -> None:
        """Make missing blocks of `entry` with the smallest delta that fits; nothing when none fits or that one fails.

        Args:
            file: The open block file; it checks each block that is written.
            entry: Its entry in the manifest.
            folder: Disk folder for the payload while it is needed.

        Raises:
            TransportError, UnavailableError, RefusedError, DiskError: fetching failed. Fetched blocks are kept for the
                next attempt.
        """
        offers = [offer for offer in self._offers if offer.result == entry.sha256]
        if file.blocks.done or not offers:
            return
        match = await in_thread(self._find_base, sorted(offers, key=lambda offer: offer.size))
        if match is None:
            return
        offer, base, size = match
        try:
            await self._fill(file, entry, f"{folder}/{PAYLOAD_NAME}", offer, base, size)
        except (DataError, NotFoundError, DigestMismatchError, MissingExtraError, FileNotFoundError) as error:
            self.failed += 1
            await in_thread(self._disk.remove, f"{folder}/{OFFERS_NAME}")  # the next attempt must not try it again
            log.warning("the delta to %s failed, whole blocks are fetched: %s", entry.path, error)
        await in_thread(self._remove_payload, f"{folder}/{PAYLOAD_NAME}")

    async def _fill(
        self, file: BlockFile, entry: FileEntry, payload_name: str, offer: Offer, base: str, base_size: int
    ) -> None:
        data = await self._fetch_blob(offer.description, offer.length, f"delta to {entry.path}")
        delta = parse_delta(data, offer, base_size=base_size, result_size=entry.size)
        missing = file.blocks.missing()
        segments = segments_of(missing)
        wanted = payload_blocks(delta, segments)
        if len(wanted) > WIN_SHARE * len(missing) or self._disk.free_bytes() < offer.size + SPARE_BYTES:
            return
        payload = delta.payload_entry(PAYLOAD_NAME)
        payload_file = BlockFile(self._disk, payload_name, payload)
        await in_thread(payload_file.open)
        try:
            await self._fetch_file(payload_file, payload, wanted)
        finally:
            await in_thread(payload_file.save)
        offsets = delta.offsets()
        for index in segments:
            self.made += await in_thread(self._make, file, delta, index, base, payload_name, offsets[index])
        log.info("%s: %d blocks made with %d of a delta", entry.path, self.made, len(wanted))

    def _find_base(self, offers: Sequence[Offer]) -> tuple[Offer, str, int] | None:
        """The first offer whose base is whole in some slot, with the base's disk name and size."""
        wanted = {offer.base for offer in offers}
        bases: dict[str, tuple[str, FileEntry]] = {}
        for folder, manifest in slot_manifests(self._disk):
            for entry in manifest.files:
                if entry.sha256 in wanted:
                    bases.setdefault(entry.sha256, (f"{folder}/{entry.path}", entry))
        for offer in offers:
            if offer.base in bases:
                name, entry = bases[offer.base]
                try:
                    verify_file(self._disk, name, entry)
                except (DiskError, DigestMismatchError) as error:
                    log.warning("%s cannot be the base of a delta: %s", name, error)
                    continue
                return offer, name, entry.size
        return None

    def _make(self, file: BlockFile, delta: Delta, index: int, base: str, payload_name: str, at: int) -> int:
        try:
            from edgekit.deltas.codec import decode_segment  # imported here, because its libraries are optional
        except ImportError as error:
            raise MissingExtraError(error.name or "zstandard", "delta") from error
        segment, size = delta.segments[index], delta.segment_bytes(index)
        base_bytes = b"".join(
            bytes(span.length) if span.offset < 0 else self._disk.read_at(base, span.offset, span.length)
            for span in segment.spans
        )
        if len(base_bytes) != sum(span.length for span in segment.spans):
            raise DataError(f"{base} has become shorter")
        stream = self._disk.read_at(payload_name, at, segment.payload_bytes) if segment.payload_bytes else b""
        made = decode_segment(segment, base_bytes, stream, size)
        blocks = [
            (block, made[start : start + BLOCK_BYTES])
            for block, start in enumerate(range(0, size, BLOCK_BYTES), index * SEGMENT_BLOCKS)
            if block not in file.blocks
        ]
        for block, data in blocks:
            file.put(block, data)
        return len(blocks)

    def _remove_payload(self, name: str) -> None:
        self._disk.remove(name)
        self._disk.remove(name + BlockFile.MAP_SUFFIX)
