"""Broadcasts: sends each block of a blob once to all listening devices; rules in `edgekit.transfer.broadcast`.

Broadcasts only save bytes. A device that receives none requests its blocks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable

from edgekit.bundle.manifest import BLOCK_BYTES, SHA256
from edgekit.errors import DataError, EdgekitError
from edgekit.mqtt import topics
from edgekit.mqtt.limits import broadcast_blocks
from edgekit.mqtt.messages import BlocksRequest, BroadcastBlocks, BroadcastClaim, decode, encode
from edgekit.protocols import Clock, Message, Transport
from edgekit.transfer.broadcast import (
    GATHER_PARTS,
    GATHER_SECONDS,
    Broadcast,
    WaitingDevices,
    bits_of,
    bytes_per_second,
)

log = logging.getLogger(__name__)

MAX_BLOBS = 256  # blobs with waiting devices, and blobs that other controllers broadcast
MAX_CLAIM_SECONDS = 600.0
BURST_SECONDS = 0.25

Read = Callable[[str, list[int]], Awaitable[list[tuple[int, bytes]]]]


class BroadcastService:
    """Starts a broadcast when enough devices miss the same blocks, and makes requesting devices listen to it.

    Several controllers agree by claims, messages on a shared topic: one of them broadcasts a blob at a time.

    Args:
        fleet, transport, clock: As BlockService.
        read: Reads consecutive blocks of a blob.
        broker_budget_bytes: Bytes that a broker may have to buffer when no device reads.
        gather_seconds: Longest time in which further devices can join before the first block.

    Attributes:
        started: Number of broadcasts that sent blocks.
        blocks_sent: Number of blocks that were broadcast.
        failures: Broadcasts that ended with an unexpected error.
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
        self._waiting: dict[str, WaitingDevices] = {}  # by digest
        self._broadcasts: dict[str, tuple[Broadcast, asyncio.Task[None]]] = {}  # by digest, from the gathering on
        self._sending: set[str] = set()  # digests of broadcasts that send blocks now
        self._elsewhere: dict[str, float] = {}  # digest -> time until which another controller broadcasts it
        self._claim_tasks: set[asyncio.Task[None]] = set()
        self.started = self.blocks_sent = self.failures = 0

    async def start(self) -> None:
        """Subscribe to the claims of other controllers."""
        await self._transport.subscribe(topics.broadcast_claim(self._fleet, "+"), self._claim_received)

    async def stop(self) -> None:
        """Cancel all broadcasts; their devices request the remaining blocks."""
        tasks = [task for _, task in self._broadcasts.values()] + list(self._claim_tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def request(self, device: str, request: BlocksRequest, total: int) -> bool:
        """Record the blocks that a device misses.

        Args:
            device: Name of the device.
            request: Its request.
            total: Number of blocks of the blob.

        Returns:
            True if the device should listen to a broadcast and get no answer with blocks now.
        """
        now, digest = self._clock.monotonic(), request.digest
        bits = bits_of(request.missing, total)
        if not bits:
            if request.left == 0 and digest in self._waiting:
                self._waiting[digest].remove(device)
            return False
        sending = digest in self._sending
        if digest in self._broadcasts and self._broadcasts[digest][0].join(device, bits, sending=sending):
            return True
        if self._elsewhere.get(digest, 0.0) > now:
            if bits.bit_count() * 4 < total:
                return False
            self._claim(digest, BroadcastClaim(self._name, missing=request.missing))
            return True
        waiting = self._waiting_for(digest, now)
        if waiting is None:
            return False
        waiting.add(device, bits, now)
        if digest in self._broadcasts or not waiting.worth_a_broadcast(now):
            return False  # devices that missed too much of this broadcast wait for the next one
        self._begin(digest, total, waiting)
        return True

    def _waiting_for(self, digest: str, now: float) -> WaitingDevices | None:
        if digest not in self._waiting and len(self._waiting) >= MAX_BLOBS:
            self._waiting = {name: waiting for name, waiting in self._waiting.items() if waiting.remove_silent(now)}
            if len(self._waiting) >= MAX_BLOBS:
                return None
        return self._waiting.setdefault(digest, WaitingDevices())

    def _begin(self, digest: str, total: int, waiting: WaitingDevices) -> None:
        del self._waiting[digest]
        broadcast = Broadcast(total, waiting.union, waiting.devices)
        task = asyncio.get_running_loop().create_task(self._run(digest, broadcast), name=f"broadcast {digest}")
        self._broadcasts[digest] = (broadcast, task)

    async def _run(self, digest: str, broadcast: Broadcast) -> None:
        try:
            self._claim(digest, BroadcastClaim(self._name, seconds=self._seconds(broadcast)))
            await self._gather(broadcast)
            if self._elsewhere.get(digest, 0.0) > self._clock.monotonic():
                return  # the other controller was first
            self._sending.add(digest)
            self.started += 1
            self._claim(digest, BroadcastClaim(self._name, sending=True, seconds=self._seconds(broadcast)))
            log.info("broadcast of %s to %d devices begins", digest, len(broadcast.devices))
            await self._send(digest, broadcast)
            log.info("broadcast of %s to %d devices ended: %d blocks", digest, len(broadcast.devices), broadcast.sent)
        except EdgekitError as error:
            log.warning("broadcast of %s ended early, its devices will request the rest: %s", digest, error)
        except Exception:  # supervision boundary, counted: a failed broadcast must not end the answers to requests
            self.failures += 1
            log.exception("broadcast of %s failed", digest)
        finally:
            self._sending.discard(digest)
            del self._broadcasts[digest]

    async def _gather(self, broadcast: Broadcast) -> None:
        """Wait as long as further devices join, up to the longest time."""
        for _ in range(GATHER_PARTS):
            known = len(broadcast.devices)
            await asyncio.sleep(self._gather_seconds / GATHER_PARTS)
            if len(broadcast.devices) == known:
                return

    async def _send(self, digest: str, broadcast: Broadcast) -> None:
        topic = topics.broadcast(self._fleet, digest)
        due = self._clock.monotonic()
        most = broadcast_blocks(self._transport.packet_limit)
        while (run := broadcast.next_run(most)) is not None:
            blocks = await self._read(digest, list(run))
            data = b"".join(block for _, block in blocks)
            # QoS 1 up to the broker, whose acknowledgements set the pace; devices subscribe with QoS 0.
            await self._transport.publish(topic, encode(BroadcastBlocks(blocks[0][0], data)), qos=1)
            self.blocks_sent += len(blocks)
            now = self._clock.monotonic()
            due = max(due, now - BURST_SECONDS) + len(data) / bytes_per_second(self._budget, len(broadcast.devices))
            await asyncio.sleep(max(0.0, due - now))
        await self._transport.publish(topic, encode(BroadcastBlocks(broadcast.total, b"")), qos=1)

    def _seconds(self, broadcast: Broadcast) -> float:
        rate = bytes_per_second(self._budget, len(broadcast.devices))
        return self._gather_seconds + broadcast.total * BLOCK_BYTES / rate

    def _claim(self, digest: str, claim: BroadcastClaim) -> None:
        task = asyncio.get_running_loop().create_task(self._publish_claim(digest, claim))
        self._claim_tasks.add(task)
        task.add_done_callback(self._claim_tasks.discard)

    async def _publish_claim(self, digest: str, claim: BroadcastClaim) -> None:
        try:
            await self._transport.publish(topics.broadcast_claim(self._fleet, digest), encode(claim), qos=1)
        except EdgekitError as error:
            log.debug("a broadcast claim was not sent: %s", error)

    def _claim_received(self, message: Message) -> None:
        digest = message.topic.split("/")[-2]
        try:
            claim = decode(message.payload, BroadcastClaim)
        except DataError as error:
            log.debug("a broadcast claim was dropped: %s", error)
            return
        if claim.controller == self._name or message.retained or not SHA256.fullmatch(digest):
            return
        if claim.seconds <= 0:  # devices of the other controller join this broadcast
            if digest in self._broadcasts:
                broadcast, _ = self._broadcasts[digest]
                sending = digest in self._sending
                broadcast.join(f"{claim.controller}/", bits_of(claim.missing, broadcast.total), sending=sending)
            return
        if digest in self._sending:
            if not claim.sending:
                seconds = self._seconds(self._broadcasts[digest][0])
                self._claim(digest, BroadcastClaim(self._name, sending=True, seconds=seconds))
            return
        if claim.sending or digest not in self._broadcasts or claim.controller < self._name:
            if len(self._elsewhere) >= MAX_BLOBS:
                now = self._clock.monotonic()
                self._elsewhere = {name: until for name, until in self._elsewhere.items() if until > now}
            if len(self._elsewhere) < MAX_BLOBS:
                self._elsewhere[digest] = self._clock.monotonic() + min(claim.seconds, MAX_CLAIM_SECONDS)
