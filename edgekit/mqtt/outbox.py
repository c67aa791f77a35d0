"""The outgoing messages of one connection that are queued or unacknowledged: their limits and their waiters."""

from __future__ import annotations

import asyncio

from paho.mqtt.reasoncodes import ReasonCode

from edgekit.errors import TransportError

MAX_INFLIGHT = 20


class Outbox:
    """Messages between `add` and `sent`, by paho's message number.

    Args:
        max_messages, max_bytes: Most messages and payload bytes that may be queued.

    Attributes:
        inflight_limit: QoS 1 messages that the broker accepts before it acknowledges one.
        bytes: Payload bytes that are queued or unacknowledged.
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
        """True where `size` more bytes may be queued; a single message is always accepted."""
        if not self._sending:
            return True
        full = len(self._sending) >= self._max_messages
        if qos and self._inflight >= self.inflight_limit:
            return False
        return not full and self.bytes + size <= self._max_bytes

    async def wait_room(self, size: int, qos: int) -> None:
        """Wait until `size` bytes may be queued, or the connection has ended."""
        while not self.has_room(size, qos) and not self._closed:
            self._changed.clear()
            await self._changed.wait()

    def add(self, number: int, size: int, qos: int) -> asyncio.Future[None] | None:
        """Add a message that paho has accepted. At QoS 1, the returned future is done when the broker has it."""
        future: asyncio.Future[None] | None = asyncio.get_running_loop().create_future() if qos else None
        self._sending[number] = (size, future)
        self.bytes += size
        self._inflight += qos
        return future

    def sent(self, number: int, reason: ReasonCode) -> None:
        """Remove a message that was sent (QoS 0), or that the broker acknowledged or refused (QoS 1)."""
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
        """End the outbox with the connection; every waiting future fails with `error`."""
        self._closed = True
        for _, future in self._sending.values():
            if future is not None and not future.done():
                future.set_exception(error)
        self._sending.clear()
        self.bytes = 0
        self._changed.set()
