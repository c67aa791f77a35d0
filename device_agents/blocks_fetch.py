"""Blocks over MQTT: ask for what is missing with credit, take what arrives in any order, ask again for the lost."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable

from device_agents.answers import Answers, Exchange, check_answer
from device_agents.throttle import Bucket, QuietHours
from edgekit.blocks import BlockMap, RoundTrip, Window, to_ranges
from edgekit.errors import DigestMismatchError, TransportError, UnavailableError
from edgekit.messages import Answer
from edgekit.protocols import BlockSource, Clock

MAX_SILENT_ATTEMPTS = 5
MAX_WRONG = 3
MAX_BUSY_SECONDS = 15.0


class Gate:
    """Lets requests through at the rate and in the hours that the device's owner allows.

    Args:
        clock: Monotonic time for the rate, wall time (in the device's time zone) for the hours.
        bytes_per_second: 0 for no limit.
        quiet: Hours in which nothing is asked for; None for none.
    """

    def __init__(self, clock: Clock, *, bytes_per_second: int = 0, quiet: QuietHours | None = None) -> None:
        self._clock, self._quiet = clock, quiet
        self._bucket = Bucket.full(bytes_per_second, clock.monotonic())

    def check_hours(self) -> None:
        """Raises UnavailableError in quiet hours."""
        local = time.localtime(self._clock.wall())
        if self._quiet is not None and local.tm_hour * 60 + local.tm_min in self._quiet:
            raise UnavailableError(f"nothing is downloaded in quiet hours, {self._quiet}")

    async def pass_blocks(self, wanted: int, *, wait: bool) -> int:
        """How many of `wanted` blocks may be asked for now, which counts as asked; 0 only where `wait` is false.

        Raises:
            UnavailableError: quiet hours have begun.
        """
        self.check_hours()
        while not (allowed := self._bucket.blocks(self._clock.monotonic(), wanted)) and wait:
            await asyncio.sleep(max(0.001, self._bucket.wait_seconds(self._clock.monotonic())))
            self.check_hours()
        self._bucket = self._bucket.take(self._clock.monotonic(), allowed)
        return allowed


class BlockFetcher:
    """BlockSource over the request and answer topics; round trips are remembered from blob to blob.

    Args:
        answers: The topics.
        clock: Monotonic time.
        gate: Rate and hours; open where None.
    """

    def __init__(self, answers: Answers, clock: Clock, gate: Gate | None = None) -> None:
        self._answers = answers
        self._clock = clock
        self.gate = gate or Gate(clock)
        self._round_trip = RoundTrip()

    async def blocks(self, digest: str, wanted: Iterable[int]) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield each wanted block once, as it arrives; the caller verifies it.

        Raises:
            NotFoundError: the store has no blob with this digest.
            TransportError: the broker is away, or nothing arrived for several attempts.
            UnavailableError: quiet hours have begun.
        """
        with self._answers.exchange() as exchange:
            transfer = _Transfer(self._answers, exchange, self._clock, self.gate, digest, wanted, self._round_trip)
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
        return await fetch_blob(self, digest, size, what)


async def fetch_blob(source: BlockSource, digest: str, size: int, what: str) -> bytes:
    """As `BlockFetcher.blob`, from any source."""
    found = ""
    for _ in range(MAX_WRONG):
        parts: dict[int, bytes] = {}
        blocks = source.blocks(digest, range(BlockMap(size).count))
        try:
            async for index, data in blocks:
                parts[index] = data
        finally:
            if isinstance(blocks, AsyncGenerator):
                await blocks.aclose()
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
        gate: Gate,
        digest: str,
        wanted: Iterable[int],
        round_trip: RoundTrip,
    ) -> None:
        self._answers, self._exchange, self._clock, self._gate = answers, exchange, clock, gate
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
        allowed = await self._gate.pass_blocks(min(credit, len(self._waiting)), wait=not self._asked)
        if not allowed:
            return
        indexes = [self._waiting.popleft() for _ in range(allowed)]
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
