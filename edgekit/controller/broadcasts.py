"""Sends a blob's blocks once to all who listen, instead of once to each; the rules are in `edgekit.transfer.broadcast`.

Nothing here is needed for a device to come to its blocks: one that hears nothing asks for them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable

from edgekit.bundle.manifest import BLOCK_BYTES, SHA256
from edgekit.errors import DataError, EdgekitError
from edgekit.mqtt import topics
from edgekit.mqtt.messages import BlocksRequest, WaveBlocks, WaveClaim, decode, encode
from edgekit.protocols import Clock, Message, Transport
from edgekit.transfer.broadcast import GATHER_SECONDS, Crowd, Wave, bits_of, bytes_per_second

log = logging.getLogger(__name__)

MAX_CROWDS = 256
MAX_FOREIGN_SECONDS = 600.0
BURST_SECONDS = 0.25

Read = Callable[[str, list[int]], Awaitable[list[tuple[int, bytes]]]]


class WaveService:
    """Begins a wave when enough devices miss the same, and tells those who ask to listen.

    Args:
        fleet, transport, clock: As BlockService.
        read: Reads consecutive blocks of a blob.
        broker_budget_bytes: What a broker may come to hold when nobody reads.
        gather_seconds: How long devices are waited for before the first block.

    Attributes:
        waves, blocks_sent: How many were begun, and their blocks.
        failures: Waves that ended in an error that nobody foresaw.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        clock: Clock,
        read: Read,
        broker_budget_bytes: int,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._fleet, self._transport, self._clock, self._read = fleet, transport, clock, read
        self._budget, self._gather_seconds = broker_budget_bytes, gather_seconds
        self._name = secrets.token_hex(8)
        self._crowds: dict[str, Crowd] = {}
        self._waves: dict[str, tuple[Wave, asyncio.Task[None]]] = {}
        self._sending: set[str] = set()
        self._foreign: dict[str, float] = {}  # digest -> until when another controller sends it
        self._said: set[asyncio.Task[None]] = set()
        self.waves = self.blocks_sent = self.failures = 0

    async def start(self) -> None:
        """Listen to what other controllers send."""
        await self._transport.subscribe(topics.wave_claim(self._fleet, "+"), self._claimed)

    async def stop(self) -> None:
        """End every wave; its devices ask for the rest."""
        tasks = [task for _, task in self._waves.values()] + list(self._said)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def ask(self, device: str, request: BlocksRequest, total: int) -> bool:
        """Note what a device misses; True when it should listen and not be answered now."""
        now, digest = self._clock.monotonic(), request.digest
        bits = bits_of(request.missing, total)
        if not bits:
            if request.left == 0 and digest in self._crowds:
                self._crowds[digest].left(device)
            return False
        if digest in self._waves and self._waves[digest][0].join(device, bits, sending=digest in self._sending):
            return True
        if self._foreign.get(digest, 0.0) > now:
            if bits.bit_count() * 4 < total:
                return False
            self._say(digest, WaveClaim(self._name, missing=request.missing))
            return True
        crowd = self._crowd(digest, now)
        if crowd is None:
            return False
        crowd.asked(device, bits, now)
        if digest in self._waves or not crowd.worth_a_wave(now):
            return False  # the next wave is for those who missed too much of this one
        self._begin(digest, total, crowd)
        return True

    def _crowd(self, digest: str, now: float) -> Crowd | None:
        if digest not in self._crowds and len(self._crowds) >= MAX_CROWDS:
            self._crowds = {name: crowd for name, crowd in self._crowds.items() if crowd.sweep(now)}
            if len(self._crowds) >= MAX_CROWDS:
                return None
        return self._crowds.setdefault(digest, Crowd())

    def _begin(self, digest: str, total: int, crowd: Crowd) -> None:
        del self._crowds[digest]
        wave = Wave(total, crowd.union, crowd.devices)
        task = asyncio.get_running_loop().create_task(self._run(digest, wave), name=f"wave {digest}")
        self._waves[digest] = (wave, task)

    async def _run(self, digest: str, wave: Wave) -> None:
        try:
            self._say(digest, WaveClaim(self._name, seconds=self._seconds(wave)))
            await asyncio.sleep(self._gather_seconds)
            if self._foreign.get(digest, 0.0) > self._clock.monotonic():
                return  # the other controller was first
            self._sending.add(digest)
            self.waves += 1
            self._say(digest, WaveClaim(self._name, sending=True, seconds=self._seconds(wave)))
            log.info("wave of %s to %d devices begins", digest, len(wave.devices))
            await self._send(digest, wave)
            log.info("wave of %s to %d devices is over, %d blocks", digest, len(wave.devices), wave.sent)
        except EdgekitError as error:
            log.warning("wave of %s ends early, its devices will ask: %s", digest, error)
        except Exception:  # supervision boundary: a wave is a help, and cannot end what answers requests
            self.failures += 1
            log.exception("wave of %s failed", digest)
        finally:
            self._sending.discard(digest)
            del self._waves[digest]

    async def _send(self, digest: str, wave: Wave) -> None:
        topic = topics.wave(self._fleet, digest)
        due = self._clock.monotonic()
        while (run := wave.next_run()) is not None:
            blocks = await self._read(digest, list(run))
            data = b"".join(block for _, block in blocks)
            # QoS 1 as far as the broker, which so sets the pace; devices subscribe at QoS 0.
            await self._transport.publish(topic, encode(WaveBlocks(blocks[0][0], data)), qos=1)
            self.blocks_sent += len(blocks)
            now = self._clock.monotonic()
            due = max(due, now - BURST_SECONDS) + len(data) / bytes_per_second(self._budget, len(wave.devices))
            await asyncio.sleep(max(0.0, due - now))
        await self._transport.publish(topic, encode(WaveBlocks(wave.total, b"")), qos=1)

    def _seconds(self, wave: Wave) -> float:
        rate = bytes_per_second(self._budget, len(wave.devices))
        return self._gather_seconds + wave.total * BLOCK_BYTES / rate

    def _say(self, digest: str, claim: WaveClaim) -> None:
        task = asyncio.get_running_loop().create_task(self._publish_claim(digest, claim))
        self._said.add(task)
        task.add_done_callback(self._said.discard)

    async def _publish_claim(self, digest: str, claim: WaveClaim) -> None:
        try:
            await self._transport.publish(topics.wave_claim(self._fleet, digest), encode(claim), qos=1)
        except EdgekitError as error:
            log.debug("a claim was not sent: %s", error)

    def _claimed(self, message: Message) -> None:
        digest = message.topic.split("/")[-2]
        try:
            claim = decode(message.payload, WaveClaim)
        except DataError as error:
            log.debug("a claim was dropped: %s", error)
            return
        if claim.controller == self._name or message.retained or not SHA256.fullmatch(digest):
            return
        if claim.seconds <= 0:
            if digest in self._waves:
                wave, _ = self._waves[digest]
                sending = digest in self._sending
                wave.join(f"{claim.controller}/", bits_of(claim.missing, wave.total), sending=sending)
            return
        if digest in self._sending:
            if not claim.sending:
                self._say(digest, WaveClaim(self._name, sending=True, seconds=self._seconds(self._waves[digest][0])))
            return
        if claim.sending or digest not in self._waves or claim.controller < self._name:
            if len(self._foreign) >= MAX_CROWDS:
                now = self._clock.monotonic()
                self._foreign = {name: until for name, until in self._foreign.items() if until > now}
            if len(self._foreign) < MAX_CROWDS:
                self._foreign[digest] = self._clock.monotonic() + min(claim.seconds, MAX_FOREIGN_SECONDS)
