"""The block service: sends blocks of blobs by digest, and keeps no state of a transfer between two requests.

So every controller can answer every request, and a transfer continues when the controller that began it stops.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES, SHA256
from edgekit.controller.broadcasts import BroadcastService
from edgekit.controller.leases import WINDOW_BLOCKS, Leases
from edgekit.controller.requests import BusyError, RequestService, check_id
from edgekit.errors import DataError, NotFoundError, StoreError
from edgekit.mqtt.limits import MIN_PART_BYTES, part_bytes
from edgekit.mqtt.messages import Answer, BlocksRequest, Part, Range, decode
from edgekit.protocols import Clock, Store, Transport
from edgekit.registry import blob_name
from edgekit.transfer.broadcast import GATHER_SECONDS

MAX_CREDIT = WINDOW_BLOCKS
MAX_RANGES = 1024
MIN_URL_BLOCKS = 16  # sending fewer blocks over MQTT takes no longer than sending a URL
CACHE_BYTES = 32 * 1024**2
CACHE_SECONDS = 30.0  # short, so that a blob that was repaired in the store is soon served correctly


class BlockService(RequestService):
    """Answers ``request/blocks/<device>``.

    Args:
        fleet, transport: As RequestService.
        store: The registry's store.
        clock: Time for leases and for the cache.
        broker_budget_bytes: Bytes that may be on the way to devices at one time, up to one window each. Further devices
            get the error ``busy`` with a time to retry.
        urls: Returns the HTTP URLs of a blob for its digest; called in a thread.
        refused: Returns why a device gets no blocks; empty for one that does.
        gather_seconds: As BroadcastService.
        answers_here: As RequestService.
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
        refused: Callable[[str], str] = lambda device: "",
        gather_seconds: float = GATHER_SECONDS,
        answers_here: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(fleet=fleet, kind="blocks", transport=transport, answers_here=answers_here)
        self._store = store
        self._clock = clock
        self.leases = Leases(broker_budget_bytes)
        self._urls = urls
        self._refused = refused
        self._cache = BlockCache(CACHE_BYTES, CACHE_SECONDS, clock)
        self.broadcasts = BroadcastService(
            fleet=fleet,
            transport=transport,
            clock=clock,
            read=self._read,
            broker_budget_bytes=broker_budget_bytes,
            gather_seconds=gather_seconds,
        )

    async def start(self) -> None:
        """Subscribe to requests and to the broadcast claims of other controllers."""
        await self.broadcasts.start()
        await super().start()

    async def stop(self) -> None:
        """Cancel the answers and broadcasts in progress."""
        await super().stop()
        await self.broadcasts.stop()

    async def answers(self, device: str, payload: bytes) -> AsyncIterator[Answer]:
        """Up to MAX_CREDIT blocks, in the requested order; in parts where the broker accepts no whole block."""
        request = decode(payload, BlocksRequest)
        check_id(request.id)
        self._check(request)
        if reason := self._refused(device):
            raise DataError(f"this device gets no blocks: {reason}")
        size = await self._size(request.digest)
        total = -(-size // BLOCK_BYTES)
        if request.urls and total >= MIN_URL_BLOCKS and (urls := await asyncio.to_thread(self._urls, request.digest)):
            yield Answer(id=request.id, total=total, urls=tuple(urls))
            return
        packet = part_bytes(self._transport.packet_limit)
        if packet == BLOCK_BYTES and self.broadcasts.request(device, request, total):
            self.leases.release(device, self._clock.monotonic())
            raise BusyError("a broadcast of this blob is in progress", 0.0, broadcast=True)
        self._admit(device, request, size)
        wanted = list(itertools.islice(_indexes(request.ranges, total), min(request.credit, MAX_CREDIT)))
        most = min(packet, request.part_bytes) if request.part_bytes else BLOCK_BYTES
        for run in _runs(wanted):
            for index, data in await self._read(request.digest, run):
                for offset in range(0, len(data), most):
                    part = Part(offset, len(data)) if most < len(data) else msgspec.UNSET
                    sent = data[offset : offset + most]
                    yield Answer(id=request.id, index=index, total=total, data=sent, part=part)

    def _check(self, request: BlocksRequest) -> None:
        if not SHA256.fullmatch(request.digest):
            raise DataError("the digest is not 64 lower case hex digits")
        if not 0 < len(request.ranges) <= MAX_RANGES or len(request.missing) > MAX_RANGES:
            count = max(len(request.ranges), len(request.missing))
            raise DataError(f"the request has {count} ranges, expected 1 to {MAX_RANGES}")
        if request.credit < 1:
            raise DataError(f"credit is {request.credit}, expected at least 1")
        if request.part_bytes and request.part_bytes < MIN_PART_BYTES:
            raise DataError(f"part_bytes is {request.part_bytes}, expected 0 or at least {MIN_PART_BYTES}")

    def _admit(self, device: str, request: BlocksRequest, size: int) -> None:
        missing = (request.credit + request.left) * BLOCK_BYTES if request.left >= 0 else size
        last = request.left == 0
        retry_seconds = self.leases.request(device, self._clock.monotonic(), size=min(size, missing), last=last)
        if retry_seconds:
            raise BusyError(f"{self.leases.active} transfers are in progress", retry_seconds)

    async def _size(self, digest: str) -> int:
        cached = self._cache.get(digest, -1)
        if cached is not None:
            return int(cached)
        try:
            size = await asyncio.to_thread(self._store.size, blob_name(digest))
        except NotFoundError as error:
            raise NotFoundError(f"there is no blob {digest}") from error  # devices must not see the store's address
        self._cache.put(digest, -1, str(size).encode())
        return size

    async def _read(self, digest: str, run: list[int]) -> list[tuple[int, bytes]]:
        """The blocks of one run of consecutive indexes, from the cache or with one read of the store."""
        cached = [(index, self._cache.get(digest, index)) for index in run]
        hits = [(index, data) for index, data in cached if data is not None]
        if len(hits) == len(run):
            return hits
        start, length = run[0] * BLOCK_BYTES, len(run) * BLOCK_BYTES
        data = await asyncio.to_thread(self._store.get_range, blob_name(digest), start, length)
        blocks = [(index, data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]) for at, index in enumerate(run)]
        if not blocks[-1][1]:
            raise StoreError(f"blob {digest} has become shorter in the store")
        for index, block in blocks:
            self._cache.put(digest, index, block)
        return blocks


class BlockCache:
    """Cache of blocks that several devices request at about the same time.

    Args:
        limit: Capacity in bytes.
        seconds: Time after which a block is dropped.
        clock: Monotonic time.
    """

    def __init__(self, limit: int, seconds: float, clock: Clock) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._blocks: collections.OrderedDict[tuple[str, int], tuple[float, bytes]] = collections.OrderedDict()
        self.bytes = 0

    def get(self, digest: str, index: int) -> bytes | None:
        """A cached block; None if it is absent or too old."""
        entry = self._blocks.get((digest, index))
        if entry is None or self._clock.monotonic() - entry[0] >= self._seconds:
            return None
        self._blocks.move_to_end((digest, index))
        return entry[1]

    def put(self, digest: str, index: int, data: bytes) -> None:
        """Add a block; drops the least recently used blocks above the limit."""
        old = self._blocks.pop((digest, index), None)
        self.bytes += len(data) - (len(old[1]) if old else 0)
        self._blocks[digest, index] = (self._clock.monotonic(), data)
        while self.bytes > self._limit:
            _, (_, dropped) = self._blocks.popitem(last=False)
            self.bytes -= len(dropped)


def _indexes(ranges: Iterable[Range], total: int) -> Iterator[int]:
    for wanted in ranges:
        if not 0 <= wanted.first <= wanted.last < total:
            raise DataError(f"blocks {wanted.first} to {wanted.last} are outside the {total} blocks of this blob")
        yield from range(wanted.first, wanted.last + 1)


def _runs(indexes: list[int]) -> Iterator[list[int]]:
    for _, group in itertools.groupby(enumerate(indexes), key=lambda pair: pair[1] - pair[0]):
        yield [index for _, index in group]
