"""The messages of devices that wait to be stored, and the task that has them stored, many in one transaction."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgekit.errors import UnavailableError
from edgekit.protocols import Clock, Message

log = logging.getLogger(__name__)

INBOX_MESSAGES = 10_000
GATHER_SECONDS = 0.1  # messages of this time are stored together: a transaction costs far more than a message in it
MAX_BATCH = 256
HELD_SECONDS = 60.0  # longer than a standby needs to notice that the leader has ended
RETRY_SECONDS = 1.0


class Arrived(NamedTuple):
    """A received message, and the wall clock seconds of its arrival."""

    message: Message
    at: float


class Inbox:
    """Collects messages, and gives them to `store` in the order of their arrival.

    Args:
        store: Stores messages in one transaction, in a thread. It raises UnavailableError where they must be stored
            later; after any other error, each message gets a transaction of its own.
        clock: Time.
        leading: True while this controller stores messages. Else it keeps those of the last HELD_SECONDS, which it
            stores if it begins to lead: the leader before may not have stored them.

    Attributes:
        dropped: Messages that were dropped because too many waited.
        failures: Messages that failed with an unexpected error.
    """

    def __init__(
        self, store: Callable[[Sequence[Arrived]], None], clock: Clock, leading: Callable[[], bool] = lambda: True
    ) -> None:
        self._store, self._clock, self._leading = store, clock, leading
        self._waiting: deque[Arrived] = deque()
        self._wake = asyncio.Event()
        self.dropped = 0
        self.failures = 0

    def put(self, message: Message) -> None:
        """Take a message."""
        now = self._clock.wall()
        if not self._leading():
            while self._waiting and (len(self._waiting) >= INBOX_MESSAGES or self._waiting[0].at < now - HELD_SECONDS):
                self._waiting.popleft()
        elif len(self._waiting) >= INBOX_MESSAGES:
            self.dropped += 1  # the device reports its state again with the next heartbeat
            return
        self._waiting.append(Arrived(message, now))
        self._wake.set()

    def wake(self) -> None:
        """Look again whether this controller leads."""
        self._wake.set()

    async def run(self) -> None:
        """Have messages stored until cancelled."""
        while True:
            if not self._waiting or not self._leading():
                self._wake.clear()
                await self._wake.wait()
                continue
            await asyncio.sleep(GATHER_SECONDS)
            batch = deque(self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH)))
            try:
                await asyncio.to_thread(self._store_all, batch)
            except UnavailableError as error:
                self._waiting.extendleft(reversed(batch))
                log.warning("%d messages will be stored later: %s", len(batch), error)
                await asyncio.sleep(RETRY_SECONDS)

    def _store_all(self, batch: deque[Arrived]) -> None:
        """Store messages and take them off `batch`. Raises UnavailableError where some must be stored later."""
        try:
            self._store(tuple(batch))
            batch.clear()
        except UnavailableError:
            raise
        except Exception as error:  # one message failed and none is stored: only that one must not be
            log.debug("%d messages are stored one by one: %s", len(batch), error)
        while batch:
            try:
                self._store((batch[0],))
            except UnavailableError:
                raise
            except Exception:  # supervision boundary, counted: an unexpected error must not end the task
                self.failures += 1
                log.exception("a message on %s could not be stored", batch[0].message.topic)
            batch.popleft()
