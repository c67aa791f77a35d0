"""What one connection has sent or queued and not seen through: bounds, and who waits for what."""

from __future__ import annotations

import asyncio

from paho.mqtt.reasoncodes import ReasonCode

from edgekit.errors import TransportError

MAX_INFLIGHT = 20


class Outbox:
    """Messages between `add` and `sent`, by paho's message number.

    Args:
        max_messages, max_bytes: Bounds of what may be queued.

    Attributes:
        inflight_limit: QoS 1 messages that the broker takes before it acknowledges one.
        bytes: Of the payloads that are queued or unacknowledged.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._sending: dict[int, tuple[int, asyncio.Future[None] | None]] = {}
        self.bytes = 0
        self._inflight = 0
        self._changed = asyncio.Event()
        self._closed = False
        self.inflight_limit = MAX_INFLIGHT

    def has_room(self, size: int, qos: int) -> bool:
        """Whether `size` more bytes may be queued; a message alone always may."""
        if not self._sending:
            return True
        full = len(self._sending) >= self._max_messages
        if qos and self._inflight >= self.inflight_limit:
            return False
        return not full and self.bytes + size <= self._max_bytes

    async def wait_room(self, size: int, qos: int) -> None:
        """Wait until `size` bytes may be queued, or the connection is over."""
        while not self.has_room(size, qos) and not self._closed:
            self._changed.clear()
            await self._changed.wait()

    def add(self, number: int, size: int, qos: int) -> asyncio.Future[None] | None:
        """Note a message that paho has taken; at QoS 1 the future is done when the broker has it."""
        future: asyncio.Future[None] | None = asyncio.get_running_loop().create_future() if qos else None
        self._sending[number] = (size, future)
        self.bytes += size
        self._inflight += qos
        return future

    def sent(self, number: int, reason: ReasonCode) -> None:
        """A message left (QoS 0), or the broker answered it."""
        size, future = self._sending.pop(number, (0, None))
        self.bytes -= size
        self._inflight -= future is not None
        self._changed.set()
        if future is None or future.done():
            return
        if reason.is_failure:
            future.set_exception(TransportError(f"the broker refused the message: {str(reason).lower()}"))
        else:
            future.set_result(None)

    def close(self, error: TransportError) -> None:
        """The connection is over: everybody who waits for an answer gets `error`."""
        self._closed = True
        for _, future in self._sending.values():
            if future is not None and not future.done():
                future.set_exception(error)
        self._sending.clear()
        self.bytes = 0
        self._changed.set()
