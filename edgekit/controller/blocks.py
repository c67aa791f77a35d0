"""The block service: any block of any blob by digest, with nothing remembered between two requests.

So every controller can answer every request, and a transfer outlives the controller that began it.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from edgekit.bundle.manifest import BLOCK_BYTES, SHA256
from edgekit.controller.broadcasts import WaveService
from edgekit.controller.leases import WINDOW_BLOCKS, Leases, places_within
from edgekit.controller.requests import BusyError, RequestService, check_id
from edgekit.errors import DataError, NotFoundError, StoreError
from edgekit.mqtt.messages import Answer, BlocksRequest, Range, decode
from edgekit.protocols import Clock, Store, Transport
from edgekit.registry import blob_name

MAX_CREDIT = WINDOW_BLOCKS
MAX_RANGES = 1024
MIN_URL_BLOCKS = 16  # less is sent as quickly as its place is told
CACHE_BYTES = 32 * 1024**2
CACHE_SECONDS = 30.0  # short, so that a blob that was mended in the store is soon served as it is now


class BlockService(RequestService):
    """Answers ``request/blocks/<device>``.

    Args:
        fleet, transport: As RequestService.
        store: The registry's store.
        clock: For what is idle and what is stale.
        broker_budget_bytes: What may be under way to devices at one time, a window each; others are told when to ask
            again.
        urls: Where devices can have a blob by HTTP range, by its digest; called in a thread.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        store: Store,
        clock: Clock,
        broker_budget_bytes: int,
        urls: Callable[[str], Sequence[str]] = lambda digest: (),
    ) -> None:
        super().__init__(fleet=fleet, kind="blocks", transport=transport)
        self._store = store
        self._clock = clock
        self.leases = Leases(places_within(broker_budget_bytes))
        self._urls = urls
        self._cache = BlockCache(CACHE_BYTES, CACHE_SECONDS, clock)
        self.waves = WaveService(
            fleet=fleet, transport=transport, clock=clock, read=self._read, broker_budget_bytes=broker_budget_bytes
        )

    async def start(self) -> None:
        """As RequestService, and hear what other controllers send."""
        await self.waves.start()
        await super().start()

    async def stop(self) -> None:
        """As RequestService; waves end too."""
        await super().stop()
        await self.waves.stop()

    async def answers(self, device: str, payload: bytes) -> AsyncIterator[Answer]:
        """Up to MAX_CREDIT blocks, in the order asked for."""
        request = decode(payload, BlocksRequest)
        check_id(request.id)
        self._check(request)
        size = await self._size(request.digest)
        total = -(-size // BLOCK_BYTES)
        if request.urls and total >= MIN_URL_BLOCKS and (urls := await asyncio.to_thread(self._urls, request.digest)):
            yield Answer(id=request.id, total=total, urls=tuple(urls))
            return
        if self.waves.ask(device, request, total):
            self.leases.release(device, self._clock.monotonic())
            raise BusyError("a wave of this blob is under way", 0.0, wave=True)
        self._admit(device, last=request.left == 0)
        wanted = list(itertools.islice(_indexes(request.ranges, total), min(request.credit, MAX_CREDIT)))
        for run in _runs(wanted):
            for index, data in await self._read(request.digest, run):
                yield Answer(id=request.id, index=index, total=total, data=data)

    def _check(self, request: BlocksRequest) -> None:
        if not SHA256.fullmatch(request.digest):
            raise DataError("digest is not 64 lower case hex digits")
        if not 0 < len(request.ranges) <= MAX_RANGES or len(request.missing) > MAX_RANGES:
            found = max(len(request.ranges), len(request.missing))
            raise DataError(f"{found} ranges, expected 1 to {MAX_RANGES}")
        if request.credit < 1:
            raise DataError(f"credit is {request.credit}, expected at least 1")

    def _admit(self, device: str, *, last: bool) -> None:
        retry_seconds = self.leases.ask(device, self._clock.monotonic(), last=last)
        if retry_seconds:
            raise BusyError(f"{self.leases.held} transfers are under way", retry_seconds)

    async def _size(self, digest: str) -> int:
        cached = self._cache.get(digest, -1)
        if cached is not None:
            return int(cached)
        try:
            size = await asyncio.to_thread(self._store.size, blob_name(digest))
        except NotFoundError as error:
            raise NotFoundError(f"there is no blob {digest}") from error  # where the store is, is not for devices
        self._cache.put(digest, -1, str(size).encode())
        return size

    async def _read(self, digest: str, run: list[int]) -> list[tuple[int, bytes]]:
        """The blocks of one run of neighbours, from the cache or with one read of the store."""
        cached = [(index, self._cache.get(digest, index)) for index in run]
        found = [(index, data) for index, data in cached if data is not None]
        if len(found) == len(run):
            return found
        start, length = run[0] * BLOCK_BYTES, len(run) * BLOCK_BYTES
        data = await asyncio.to_thread(self._store.get_range, blob_name(digest), start, length)
        blocks = [(index, data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]) for at, index in enumerate(run)]
        if not blocks[-1][1]:
            raise StoreError(f"blob {digest} is shorter than it was")
        for index, block in blocks:
            self._cache.put(digest, index, block)
        return blocks


class BlockCache:
    """Hot blocks of a wave in step: bounded in bytes, forgotten after a while.

    Args:
        limit: Bytes.
        seconds: How long a block is kept.
        clock: Monotonic.
    """

    def __init__(self, limit: int, seconds: float, clock: Clock) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._kept: collections.OrderedDict[tuple[str, int], tuple[float, bytes]] = collections.OrderedDict()
        self.bytes = 0

    def get(self, digest: str, index: int) -> bytes | None:
        """A block that was put lately."""
        entry = self._kept.get((digest, index))
        if entry is None or self._clock.monotonic() - entry[0] >= self._seconds:
            return None
        self._kept.move_to_end((digest, index))
        return entry[1]

    def put(self, digest: str, index: int, data: bytes) -> None:
        """Keep a block; the least recently used ones make room."""
        old = self._kept.pop((digest, index), None)
        self.bytes += len(data) - (len(old[1]) if old else 0)
        self._kept[digest, index] = (self._clock.monotonic(), data)
        while self.bytes > self._limit:
            _, (_, dropped) = self._kept.popitem(last=False)
            self.bytes -= len(dropped)


def _indexes(ranges: Iterable[Range], total: int) -> Iterator[int]:
    for wanted in ranges:
        if not 0 <= wanted.first <= wanted.last < total:
            raise DataError(f"blocks {wanted.first} to {wanted.last} are not among the {total} of this blob")
        yield from range(wanted.first, wanted.last + 1)


def _runs(indexes: list[int]) -> Iterator[list[int]]:
    for _, group in itertools.groupby(enumerate(indexes), key=lambda pair: pair[1] - pair[0]):
        yield [index for _, index in group]
