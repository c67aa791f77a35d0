"""Blocks over MQTT: ask for what is missing with credit, take what arrives in any order, ask again for the lost."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable, Sequence

from device_agents.control.requests import Answers, Exchange, check_answer
from device_agents.download.broadcasts import HEARD, WaveEar
from device_agents.download.http_ranges import FETCHED, RangeSources
from device_agents.download.metered import MeteredLink
from device_agents.download.throttle import Bucket, QuietHours
from edgekit.errors import DigestMismatchError, TransportError, UnavailableError
from edgekit.mqtt.messages import Answer
from edgekit.protocols import BlockSource, Clock
from edgekit.transfer.blocks import BlockMap, RoundTrip, Window, to_ranges

MAX_SILENT_ATTEMPTS = 5
MAX_WRONG = 3
MAX_BUSY_SECONDS = 15.0
ELSEWHERE_SECONDS = 5.0
CLOCK_SECONDS = 0.05  # what a sleep may end too early
TRANSFER_COUNTERS = (
    "blocks_fetched",
    "bytes_fetched",
    "blocks_reused",
    "blocks_made",
    "deltas_failed",
    "http_blocks",
    "http_failures",
    "wave_blocks",
    "wrong_blocks",
    "wrong_wave_blocks",
)


class Gate:
    """Lets requests through at the rate and in the hours that the device's owner allows.

    Args:
        clock: Monotonic time for the rate, wall time (in the device's time zone) for the hours.
        bytes_per_second: 0 for no limit.
        quiet: Hours in which nothing is asked for; None for none.
        metered: What may be asked for while the link costs; None where it never does.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        bytes_per_second: int = 0,
        quiet: QuietHours | None = None,
        metered: MeteredLink | None = None,
    ) -> None:
        self._clock, self._quiet, self._metered = clock, quiet, metered or MeteredLink()
        self._bucket = Bucket.full(bytes_per_second, clock.monotonic())

    @property
    def open(self) -> bool:
        """True where there is no rate to keep and no cost, so that a device may take what it did not ask for."""
        return not self._bucket.rate and not self._metered.is_metered()

    def check_cost(self, fetched: int) -> None:
        """Raises MeteredError while the link is metered and a deployment has fetched its share over it."""
        self._metered.check(fetched)

    def check_open(self) -> None:
        """Raises UnavailableError in quiet hours, and where nothing at all may be fetched over a metered link."""
        if not self._metered.deployment_bytes:
            self._metered.check(0)
        local = time.localtime(self._clock.wall())
        if self._quiet is not None and local.tm_hour * 60 + local.tm_min in self._quiet:
            raise UnavailableError(f"nothing is downloaded in quiet hours, {self._quiet}")

    async def pass_blocks(self, wanted: int, *, wait: bool) -> int:
        """How many of `wanted` blocks may be asked for now, which counts as asked; 0 only where `wait` is false.

        Raises:
            UnavailableError: quiet hours have begun, or the link is metered.
        """
        self.check_open()
        while not (allowed := self._bucket.blocks(self._clock.monotonic(), wanted)) and wait:
            await asyncio.sleep(max(0.001, self._bucket.wait_seconds(self._clock.monotonic())))
            self.check_open()
        self._bucket = self._bucket.take(self._clock.monotonic(), allowed)
        return allowed


class BlockFetcher:
    """BlockSource over the request and answer topics; round trips are remembered from blob to blob.

    Args:
        answers: The topics.
        clock: Monotonic time.
        gate: Rate and hours; open where None.
        urls: Fetch from URLs that controllers name, too.

    Attributes:
        counters: TRANSFER_COUNTERS, which only rise.
    """

    def __init__(self, answers: Answers, clock: Clock, gate: Gate | None = None, *, urls: bool = True) -> None:
        self._urls = urls
        self._answers = answers
        self._clock = clock
        self.gate = gate or Gate(clock)
        self._round_trip = RoundTrip()
        self.counters: Counter[str] = Counter(dict.fromkeys(TRANSFER_COUNTERS, 0))

    async def blocks(
        self, digest: str, wanted: Iterable[int], hashes: Sequence[str] = ()
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield each wanted block once, as it arrives; the caller verifies it.

        Args:
            digest: Of the blob.
            wanted: Indexes of blocks.
            hashes: sha256 (hex) of each block of the blob; with them waves are listened to, and checked, too.

        Raises:
            NotFoundError: the store has no blob with this digest.
            TransportError: the broker is away, or nothing arrived for several attempts.
            UnavailableError: quiet hours have begun, or the link is metered.
        """
        with self._answers.exchange() as exchange:
            ear = WaveEar(self._answers, exchange, digest, hashes, self.counters, willing=self.gate.open)
            transfer = _Transfer(self._answers, exchange, ear, self._clock, self.gate, digest, wanted, self._round_trip)
            if hashes and self._urls:
                transfer.sources = RangeSources(exchange, hashes, transfer.take, transfer.give_back, self.counters)
            try:
                async for index, data in transfer.run():
                    yield index, data
            finally:
                self._round_trip = transfer.round_trip
                await ear.leave()
                if transfer.sources is not None:
                    await transfer.sources.stop()

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
        ear: WaveEar,
        clock: Clock,
        gate: Gate,
        digest: str,
        wanted: Iterable[int],
        round_trip: RoundTrip,
    ) -> None:
        self._answers, self._exchange, self._ear = answers, exchange, ear
        self._clock, self._gate = clock, gate
        self._digest = digest
        self._waiting = deque(dict.fromkeys(wanted))
        self._asked: dict[int, float] = {}  # block -> when it was asked for
        self._missing = set(self._waiting)
        self._sent: dict[str, float] = {}  # request -> when
        self._stale = False  # some of the waiting ones have come unasked
        self._window = Window()
        self._silent = 0
        self._busy = 0
        self.round_trip = round_trip
        self.sources: RangeSources | None = None
        self._no_urls = False

    async def take(self, most: int) -> list[int]:
        """Neighbouring blocks for another source, at the pace that the gate allows; none when nothing waits."""
        self._sort_out()
        if not self._waiting:
            return []
        allowed = await self._gate.pass_blocks(min(most, len(self._waiting)), wait=True)
        run: list[int] = []
        while self._waiting and len(run) < allowed and (not run or self._waiting[0] == run[-1] + 1):
            run.append(self._waiting.popleft())
        return run

    def give_back(self, indexes: list[int]) -> None:
        """What another source took and did not bring."""
        self._waiting.extendleft(sorted(set(indexes) & self._missing, reverse=True))

    async def run(self) -> AsyncGenerator[tuple[int, bytes], None]:
        while self._missing:
            if not self._ear.listening and not self._elsewhere:
                await self._ask()
            try:
                answer = await self._exchange.next(self._patience())
            except asyncio.TimeoutError:
                await self._nothing_came()
                continue
            if answer.id == FETCHED:
                if answer.data and self.sources is not None:
                    self.sources.taken()
                    if answer.index in self._missing:
                        self._drop(answer.index)
                        yield answer.index, answer.data
            elif answer.id == HEARD:
                if await self._ear.take(answer, self._missing):
                    self._drop(answer.index)
                    yield answer.index, answer.data
            elif answer.urls:
                self._fetch_from(answer.urls)
            elif answer.error == "busy" and answer.wave:
                await self._listen()
            elif answer.error == "busy":
                if not self._ear.listening and not self._elsewhere:
                    await self._back_off(answer.retry_seconds)
            else:
                check_answer(answer, f"blob {self._digest}")
                if answer.index in self._missing:
                    self._arrived(answer)
                    yield answer.index, answer.data

    @property
    def _elsewhere(self) -> bool:
        """Blocks are fetched from URLs, and nothing is asked for."""
        return self.sources is not None and self.sources.working

    def _fetch_from(self, urls: tuple[str, ...]) -> None:
        self._no_urls = True  # once; what they do not bring is asked for
        self._silent = self._busy = 0
        if self.sources is not None and not self._ear.listening:
            self._give_up_all()
            self.sources.start(urls)

    def _patience(self) -> float:
        if self._elsewhere:
            return ELSEWHERE_SECONDS  # they end by themselves, and say so
        if self._ear.listening:
            self._gate.check_open()
            return self._ear.patience_seconds
        if not self._asked:
            return ELSEWHERE_SECONDS  # the last ones came from elsewhere, and are in the exchange
        oldest = min(self._asked.values())
        return max(0.001, oldest + self.round_trip.timeout_seconds - self._clock.monotonic())

    async def _nothing_came(self) -> None:
        if self._elsewhere:
            return
        if self._ear.listening:
            await self._ear.leave()
        else:
            self._expire()

    async def _listen(self) -> None:
        """A wave is under way: nothing is asked for until it is over."""
        if self._ear.listening or self._elsewhere:
            return
        self._give_up_all()
        self._silent = self._busy = 0
        if not await self._ear.join(self._missing):
            await self._back_off(0.0)

    async def _ask(self) -> None:
        self._sort_out()
        credit = self._window.credit(len(self._asked))
        if not credit or not self._waiting:
            return
        allowed = await self._gate.pass_blocks(min(credit, len(self._waiting)), wait=not self._asked)
        if not allowed:
            return
        indexes = [self._waiting.popleft() for _ in range(allowed)]
        self._asked.update(dict.fromkeys(indexes, self._clock.monotonic()))
        ranges = to_ranges(indexes)
        missing = self._ear.offer(self._missing)
        begun = self._clock.monotonic()
        request = await self._answers.ask_blocks(
            self._exchange,
            self._digest,
            ranges,
            len(indexes),
            len(self._waiting),
            missing=missing,
            urls=self.sources is not None and not self._no_urls,
        )
        self._sent[request] = begun

    def _sort_out(self) -> None:
        """Nothing waits that has come."""
        if self._stale:
            self._waiting = deque(index for index in self._waiting if index in self._missing)
            self._stale = False

    def _arrived(self, answer: Answer) -> None:
        if answer.index not in self._asked:  # it came after it was given up, and before it was asked for again
            self._stale = True
        self._missing.discard(answer.index)
        self._asked.pop(answer.index, None)
        sent = self._sent.get(answer.id)
        if sent is not None:  # of the request that this answers, which may not be the last one for this block
            self.round_trip = self.round_trip.observed(self._clock.monotonic() - sent)
            self._overtaken(sent)
        self._window = self._window.after_arrival()
        self._silent = self._busy = 0

    def _overtaken(self, asked: float) -> None:
        """Give up what was asked for before a block that came, longer ago than answers take: it was lost."""
        since = min(asked, self._clock.monotonic() - self.round_trip.overtaken_seconds)
        lost = [index for index, at in self._asked.items() if at < since]
        if lost:
            self._give_up(lost)
            self._window = self._window.after_loss()

    def _drop(self, index: int) -> None:
        """A block came that is not under way."""
        self._missing.discard(index)
        self._asked.pop(index, None)
        self._stale = True

    def _expire(self) -> None:
        self._silent += 1
        if self._silent >= MAX_SILENT_ATTEMPTS:
            raise TransportError(
                f"no block of {self._digest} arrived in {self._silent} attempts, {len(self._missing)} are missing"
            )
        since = self._clock.monotonic() - self.round_trip.timeout_seconds
        self._give_up([index for index, at in self._asked.items() if at <= since + CLOCK_SECONDS])
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
        self._give_up(list(self._asked))

    def _give_up(self, indexes: list[int]) -> None:
        """Ask for blocks again, before the others."""
        self._waiting.extendleft(sorted(indexes, reverse=True))
        for index in indexes:
            del self._asked[index]
