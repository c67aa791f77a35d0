"""The Protocol of a source of blocks, and the state that the sources of one transfer share.

The three sources are `MqttRequests` (mqtt_requests), `HttpRanges` (http_ranges) and `BroadcastListener` (broadcasts).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import msgspec

from edgekit.errors import TransportError
from edgekit.mqtt.messages import Answer
from edgekit.waiting import within


class TransferSource(Protocol):
    """One source of a transfer's blocks. It puts what arrives into the transfer's inbox, as `Arrival`."""

    @property
    def active(self) -> bool:
        """True while blocks arrive from this source without further requests; meanwhile no other source is used."""
        ...

    @property
    def patience_seconds(self) -> float:
        """How long to wait for its next arrival before `on_silence`. May raise as `Gate.check_open`."""
        ...

    async def request(self) -> None:
        """Request more blocks, if this source needs requests."""
        ...

    async def accept(self, arrival: Arrival) -> bool:
        """Handle one arrival of this source; True when it holds a block that is still missing."""
        ...

    async def on_silence(self) -> None:
        """Nothing arrived for `patience_seconds`."""
        ...

    async def stop(self) -> None:
        """End the work of this source; called once, when the transfer ends."""
        ...


class Arrival(msgspec.Struct, frozen=True):
    """A block that arrived, or a message of its source.

    Attributes:
        source: The source that handles it.
        index, data: The block; `data` is empty for a message without a block.
        answer: The controller's answer, for blocks that were requested over MQTT.
    """

    source: TransferSource
    index: int = 0
    data: bytes = b""
    answer: Answer | None = None


class Inbox:
    """Arrivals of all sources of one transfer, in the order in which they came."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Arrival | None] = asyncio.Queue()

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, arrival: Arrival) -> None:
        """Add an arrival."""
        self._queue.put_nowait(arrival)

    def close(self) -> None:
        """Make `next` fail: the agent is stopping."""
        self._queue.put_nowait(None)

    async def next(self, timeout_seconds: float) -> Arrival:
        """The next arrival.

        Raises:
            asyncio.TimeoutError: none came in time.
            TransportError: the agent is stopping.
        """
        arrival = await within(timeout_seconds, self._queue.get())
        if arrival is None:
            raise TransportError("the agent is stopping")
        return arrival


class WantedBlocks:
    """The blocks that a transfer still misses: waiting for a source, requested over MQTT, or taken by HTTP ranges.

    Attributes:
        missing: Indexes of blocks that have not arrived.
        requested: Of them, those requested over MQTT, with the monotonic time of the request.
    """

    def __init__(self, indexes: Iterable[int]) -> None:
        self._waiting = deque(dict.fromkeys(indexes))
        self._stale = False  # some waiting blocks have arrived
        self.missing = set(self._waiting)
        self.requested: dict[int, float] = {}

    def waiting(self) -> int:
        """How many blocks wait for a source."""
        if self._stale:
            self._waiting = deque(index for index in self._waiting if index in self.missing)
            self._stale = False
        return len(self._waiting)

    def request(self, count: int, now: float) -> list[int]:
        """Take the first `count` waiting blocks; they count as requested at `now`."""
        indexes = [self._waiting.popleft() for _ in range(count)]
        self.requested.update(dict.fromkeys(indexes, now))
        return indexes

    def take_run(self, most: int) -> list[int]:
        """Take up to `most` waiting blocks that follow one another, for one HTTP range."""
        run: list[int] = []
        while self._waiting and len(run) < most and (not run or self._waiting[0] == run[-1] + 1):
            run.append(self._waiting.popleft())
        return run

    def put_back(self, indexes: Iterable[int]) -> None:
        """These blocks did not arrive: they wait again, before the others."""
        again = set(indexes) & self.missing
        for index in again:
            self.requested.pop(index, None)
        self._waiting.extendleft(sorted(again, reverse=True))

    def arrived(self, index: int) -> None:
        """A block has arrived."""
        self.missing.discard(index)
        if self.requested.pop(index, None) is None:
            self._stale = True  # it may be waiting
