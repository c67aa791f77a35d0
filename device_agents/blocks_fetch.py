"""Blocks over MQTT: ask for what is missing with credit, take what arrives in any order, ask again for the lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import deque
from collections.abc import AsyncGenerator, Iterable

from device_agents.answers import Answers, Exchange, check_answer
from edgekit.blocks import BlockMap, RoundTrip, Window, to_ranges
from edgekit.errors import DigestMismatchError, TransportError
from edgekit.messages import Answer
from edgekit.protocols import Clock

MAX_SILENT_ATTEMPTS = 5
MAX_WRONG = 3
MAX_BUSY_SECONDS = 15.0


class BlockFetcher:
    """BlockSource over the request and answer topics; round trips are remembered from blob to blob."""

    def __init__(self, answers: Answers, clock: Clock) -> None:
        self._answers = answers
        self._clock = clock
        self._round_trip = RoundTrip()

    async def blocks(self, digest: str, wanted: Iterable[int]) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield each wanted block once, as it arrives; the caller verifies it.

        Raises:
            NotFoundError: the store has no blob with this digest.
            TransportError: the broker is away, or nothing arrived for several attempts.
        """
        with self._answers.exchange() as exchange:
            transfer = _Transfer(self._answers, exchange, self._clock, digest, wanted, self._round_trip)
            try:
                async for index, data in transfer.run():
                    yield index, data
            finally:
                self._round_trip = transfer.round_trip

    async def blob(self, digest: str, size: int, what: str) -> bytes:
        """A whole blob of known size, verified; for small ones such as a manifest.

        Raises:
            DigestMismatchError: what was sent does not have the digest, several times over.
            NotFoundError, TransportError: as `blocks`.
        """
        found = ""
        for _ in range(MAX_WRONG):
            parts: dict[int, bytes] = {}
            async with contextlib.aclosing(self.blocks(digest, range(BlockMap(size).count))) as blocks:
                async for index, data in blocks:
                    parts[index] = data
            blob = b"".join(parts[index] for index in sorted(parts))
            found = hashlib.sha256(blob).hexdigest()
            if found == digest and len(blob) == size:
                return blob
        raise DigestMismatchError(what, expected=digest, found=found)


class _Transfer:
    """One blob under way."""

    def __init__(
        self,
        answers: Answers,
        exchange: Exchange,
        clock: Clock,
        digest: str,
        wanted: Iterable[int],
        round_trip: RoundTrip,
    ) -> None:
        self._answers, self._exchange, self._clock = answers, exchange, clock
        self._digest = digest
        self._waiting = deque(dict.fromkeys(wanted))
        self._asked: dict[int, float] = {}  # block -> when it was asked for
        self._missing = set(self._waiting)
        self._window = Window()
        self._silent = 0
        self._busy = 0
        self.round_trip = round_trip

    async def run(self) -> AsyncGenerator[tuple[int, bytes], None]:
        while self._missing:
            await self._ask()
            oldest = min(self._asked.values())
            patience = oldest + self.round_trip.timeout_seconds - self._clock.monotonic()
            try:
                answer = await self._exchange.next(max(patience, 0.001))
            except asyncio.TimeoutError:
                self._expire()
                continue
            if answer.error == "busy":
                await self._back_off(answer.retry_seconds)
                continue
            check_answer(answer, f"blob {self._digest}")
            if answer.index in self._missing:
                self._arrived(answer)
                yield answer.index, answer.data

    async def _ask(self) -> None:
        credit = self._window.credit(len(self._asked))
        if not credit or not self._waiting:
            return
        indexes = [self._waiting.popleft() for _ in range(min(credit, len(self._waiting)))]
        self._asked.update(dict.fromkeys(indexes, self._clock.monotonic()))
        ranges = to_ranges(indexes)
        await self._answers.ask_blocks(self._exchange, self._digest, ranges, len(indexes), len(self._waiting))

    def _arrived(self, answer: Answer) -> None:
        self._missing.discard(answer.index)
        asked = self._asked.pop(answer.index, None)
        if asked is None:  # it came after it was given up, and before it was asked for again
            self._waiting = deque(index for index in self._waiting if index != answer.index)
        else:
            self.round_trip = self.round_trip.observed(self._clock.monotonic() - asked)
        self._window = self._window.after_arrival()
        self._silent = self._busy = 0

    def _expire(self) -> None:
        self._silent += 1
        if self._silent >= MAX_SILENT_ATTEMPTS:
            raise TransportError(
                f"no block of {self._digest} arrived in {self._silent} attempts, {len(self._missing)} are missing"
            )
        self._give_up_all()
        self.round_trip = self.round_trip.lost()
        self._window = self._window.after_loss()

    async def _back_off(self, retry_seconds: float) -> None:
        """The controller serves as many transfers as it wants to; ask again when it says, or ever later."""
        self._give_up_all()
        self._busy = min(self._busy + 1, 6)
        told = 0 < retry_seconds <= MAX_BUSY_SECONDS
        wait = retry_seconds if told else min(MAX_BUSY_SECONDS, 0.25 * 2.0**self._busy)
        await asyncio.sleep(wait * random.uniform(0.8, 1.2))

    def _give_up_all(self) -> None:
        self._waiting.extendleft(sorted(self._asked, reverse=True))
        self._asked.clear()
