"""Blocks from a broadcast: the controller sends them once to all devices that miss them; each block is checked here."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence, Set

from device_agents.control.requests import RequestClient
from device_agents.download.block_sources import Arrival, Inbox, WantedBlocks
from device_agents.download.gate import Gate
from device_agents.download.options import TransferTimings
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import DataError, TransportError
from edgekit.mqtt.messages import BroadcastBlocks, Range, decode
from edgekit.protocols import Message
from edgekit.transfer.blocks import to_ranges
from edgekit.transfer.broadcast import LATE_SHARE, MIN_BLOCKS

log = logging.getLogger(__name__)

MAX_WAITING_BYTES = 2 * 1024**2  # in the inbox, not yet written; more blocks are dropped and requested later
MAX_WRONG_BROADCAST_BLOCKS = 8
MAX_RANGES = 1024


class BroadcastListener:
    """TransferSource over the broadcast topic of a blob.

    Args:
        client: Subscribes to the topic.
        inbox: Receives the blocks; an arrival without data says that the broadcast has ended.
        wanted: Blocks of the transfer.
        digest: Digest of the blob.
        hashes: sha256 (hex) of each of its blocks; without them no broadcast is used.
        counters: Gets `wave_blocks` and `wrong_wave_blocks`.
        gate: Limits of the owner. A gate with a rate limit or on a metered link allows no broadcast.
        timings: Time-outs.
    """

    def __init__(
        self,
        client: RequestClient,
        inbox: Inbox,
        wanted: WantedBlocks,
        digest: str,
        hashes: Sequence[str],
        counters: Counter[str],
        *,
        gate: Gate,
        timings: TransferTimings,
    ) -> None:
        self._client, self._inbox, self._wanted = client, inbox, wanted
        self._digest, self._hashes, self._counters = digest, hashes, counters
        self._gate, self._timings = gate, timings
        self._willing = gate.open and len(hashes) >= MIN_BLOCKS
        self._active = False
        self._queued: set[int] = set()
        self._waiting_bytes = 0
        self._received = self._wrong = 0  # blocks of the present broadcast; wrong blocks of all

    @property
    def active(self) -> bool:
        """True from `join` until the broadcast ends."""
        return self._active

    @property
    def patience_seconds(self) -> float:
        """How long to wait for the next block of the broadcast. Raises as `Gate.check_open`."""
        self._gate.check_open()
        return self._timings.broadcast_silent_seconds if self._received else self._timings.broadcast_first_seconds

    def offer(self, missing: Set[int]) -> tuple[Range, ...]:
        """The missing blocks for a request, if a broadcast would help; else empty."""
        if not self._willing or len(missing) < max(MIN_BLOCKS, LATE_SHARE * len(self._hashes)):
            return ()
        ranges = to_ranges(missing)
        return ranges if len(ranges) <= MAX_RANGES else ()

    async def join(self) -> bool:
        """Begin to listen; False when this transfer uses no broadcast, or the subscription fails."""
        if not self._willing:
            return False
        self._received = 0
        try:
            await self._client.subscribe_broadcast(self._digest, self._on_message)
        except TransportError as error:
            log.info("cannot subscribe to the broadcast of %s: %s", self._digest, error)
            self._willing = False
            return False
        self._active = True
        return True

    async def request(self) -> None:
        """Nothing: a broadcast needs no requests."""

    async def accept(self, arrival: Arrival) -> bool:
        """True for a block that has the right hash and is still missing."""
        self._waiting_bytes -= len(arrival.data)
        self._queued.discard(arrival.index)
        if not arrival.data:  # the end of the broadcast
            await self.stop()
        if not arrival.data or arrival.index not in self._wanted.missing:
            return False
        if hashlib.sha256(arrival.data).hexdigest() == self._hashes[arrival.index]:
            self._counters["wave_blocks"] += 1
            self._received += 1
            self._wanted.arrived(arrival.index)
            return True
        self._counters["wrong_wave_blocks"] += 1
        self._wrong += 1
        if self._wrong >= MAX_WRONG_BROADCAST_BLOCKS:
            log.warning("the broadcast of %s is left: %d of its blocks were wrong", self._digest, self._wrong)
            self._willing = False
            await self.stop()
        return False

    async def on_silence(self) -> None:
        """The broadcast has stopped: leave it."""
        await self.stop()

    async def stop(self) -> None:
        """Leave the broadcast. If it brought no block, this transfer joins no other one."""
        if not self._active:
            return
        self._active = False
        self._willing = self._willing and self._received > 0
        await self._client.unsubscribe_broadcast(self._digest)

    def _on_message(self, message: Message) -> None:
        try:
            blocks = decode(message.payload, BroadcastBlocks)
        except DataError as error:
            self._counters["wrong_wave_blocks"] += 1
            log.debug("a message on the broadcast of %s was dropped: %s", self._digest, error)
            return
        if not self._active or message.retained:
            return
        if not blocks.data and self._received:
            self._inbox.put(Arrival(self))
        for index, at in enumerate(range(0, len(blocks.data), BLOCK_BYTES), blocks.first):
            block = blocks.data[at : at + BLOCK_BYTES]
            if index not in self._wanted.missing or index in self._queued:
                continue
            if self._waiting_bytes + len(block) <= MAX_WAITING_BYTES:
                self._waiting_bytes += len(block)
                self._queued.add(index)
                self._inbox.put(Arrival(self, index, block))
