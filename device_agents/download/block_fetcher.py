"""BlockFetcher: fetches the missing blocks of a blob from MQTT requests, HTTP ranges and broadcasts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from device_agents.control.requests import RequestClient
from device_agents.download.block_sources import Inbox, TransferSource, WantedBlocks
from device_agents.download.broadcasts import BroadcastListener
from device_agents.download.gate import Gate
from device_agents.download.http_ranges import HttpRanges
from device_agents.download.mqtt_requests import MqttRequests
from device_agents.download.options import TransferTimings
from edgekit.errors import DigestMismatchError
from edgekit.protocols import BlockSource, Clock
from edgekit.transfer.blocks import BlockMap, RoundTrip

MAX_WRONG_BLOCKS = 3
TRANSFER_COUNTERS = (
    "blocks_fetched",
    "bytes_fetched",
    "bytes_wasted",
    "blocks_reused",
    "blocks_made",
    "deltas_failed",
    "http_blocks",
    "http_failures",
    "wave_blocks",
    "wrong_blocks",
    "wrong_wave_blocks",
)


class BlockFetcher:
    """BlockSource over the network; it keeps its round-trip estimate from blob to blob.

    Args:
        client: Client of the request and answer topics.
        clock: Monotonic time.
        gate: Limits of the owner; None for no limits.
        urls: Whether blocks are also fetched from URLs that controllers name.
        timings: Time-outs of HTTP requests and broadcasts; None for the defaults.
        round_trip: First estimate of the round-trip time, with the limits of time-outs; None for the defaults.

    Attributes:
        gate: The gate.
        counters: TRANSFER_COUNTERS, which only rise.
    """

    def __init__(
        self,
        client: RequestClient,
        clock: Clock,
        gate: Gate | None = None,
        *,
        urls: bool = True,
        timings: TransferTimings | None = None,
        round_trip: RoundTrip | None = None,
    ) -> None:
        self._urls, self._timings = urls, timings or TransferTimings()
        self._client = client
        self._clock = clock
        self.gate = gate or Gate(clock)
        self._round_trip = round_trip or RoundTrip()
        self.counters: Counter[str] = Counter(dict.fromkeys(TRANSFER_COUNTERS, 0))

    async def blocks(
        self,
        digest: str,
        wanted: Iterable[int],
        hashes: Sequence[str] = (),
        *,
        wasted: Callable[[int], None] = lambda size: None,
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield each wanted block once, as it arrives; the caller verifies it.

        Args:
            digest: Digest of the blob.
            wanted: Indexes of blocks.
            hashes: sha256 (hex) of each block of the blob; broadcasts and URLs are used only with them.
            wasted: Called with the bytes that arrived and are dropped. What a broadcast sends for other devices does
                not count.

        Raises:
            NotFoundError: the store has no blob with this digest.
            TransportError: there is no broker, or nothing arrived for several attempts.
            UnavailableError: quiet hours have begun, or the link is metered.
        """
        missing, inbox = WantedBlocks(wanted), Inbox()
        ranges = HttpRanges(
            inbox,
            missing,
            self.gate,
            hashes,
            self.counters,
            wasted=wasted,
            timings=self._timings,
            enabled=self._urls and bool(hashes),
        )
        broadcast = BroadcastListener(
            self._client, inbox, missing, digest, hashes, self.counters, gate=self.gate, timings=self._timings
        )
        requests = MqttRequests(
            digest,
            missing,
            inbox,
            client=self._client,
            clock=self._clock,
            gate=self.gate,
            ranges=ranges,
            broadcast=broadcast,
            round_trip=self._round_trip,
        )
        sources: tuple[TransferSource, ...] = (ranges, broadcast, requests)
        async with contextlib.AsyncExitStack() as stack:
            for source in reversed(sources):
                stack.push_async_callback(source.stop)
            try:
                while missing.missing:
                    source = next((one for one in sources if one.active), requests)
                    await source.request()
                    try:
                        arrival = await inbox.next(source.patience_seconds)
                    except asyncio.TimeoutError:
                        await source.on_silence()
                        continue
                    if await arrival.source.accept(arrival):
                        yield arrival.index, arrival.data
                    elif arrival.data:
                        wasted(len(arrival.data))
            finally:
                self._round_trip = requests.round_trip

    async def blob(self, digest: str, size: int, name: str, *, count: Callable[[int], None] = lambda n: None) -> bytes:
        """A whole blob of known size, verified; for small blobs such as a manifest.

        `count` is called with the bytes of everything that arrives.

        Raises:
            DigestMismatchError: the received bytes do not have the digest, in several attempts.
            NotFoundError, TransportError: as `blocks`.
        """
        return await fetch_blob(self, digest, size, name, count=count)


async def fetch_blob(
    source: BlockSource, digest: str, size: int, name: str, *, count: Callable[[int], None] = lambda n: None
) -> bytes:
    """As `BlockFetcher.blob`, from any source."""
    received_digest = ""
    for _ in range(MAX_WRONG_BLOCKS):
        parts: dict[int, bytes] = {}
        blocks = source.blocks(digest, range(BlockMap(size).count), wasted=count)
        try:
            async for index, data in blocks:
                parts[index] = data
                count(len(data))
        finally:
            if isinstance(blocks, AsyncGenerator):
                await blocks.aclose()
        blob = b"".join(parts[index] for index in sorted(parts))
        received_digest = hashlib.sha256(blob).hexdigest()
        if received_digest == digest and len(blob) == size:
            return blob
    raise DigestMismatchError(name, expected=digest, found=received_digest)
