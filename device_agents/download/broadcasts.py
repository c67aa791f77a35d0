"""Listening to a wave: blocks that are broadcast to all who miss them, each checked here before anybody takes it."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence, Set

from device_agents.control.requests import Answers, Exchange
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import DataError, TransportError
from edgekit.mqtt.messages import Answer, Range, WaveBlocks, decode
from edgekit.protocols import Message
from edgekit.transfer.blocks import to_ranges
from edgekit.transfer.broadcast import LATE_SHARE, MIN_BLOCKS

log = logging.getLogger(__name__)

HEARD = ""  # the request id of what nobody asked for; the network cannot use it
FIRST_SECONDS = 6.0  # until the first block: devices are gathered before
SILENT_SECONDS = 3.0  # from one block to the next
MAX_WAITING_BYTES = 2 * 1024**2  # heard and not yet written; what is over is lost, and asked for later
MAX_WRONG = 8
MAX_RANGES = 1024


class WaveEar:
    """One transfer's ear for the wave of its blob.

    Args:
        answers: Subscribes.
        exchange: Where what is heard is put, as an answer to HEARD.
        digest: Of the blob.
        hashes: sha256 (hex) of each of its blocks; without them nothing is listened to.
        counters: Gets `wave_blocks` and `wrong_wave_blocks`.
        willing: False to listen to nothing.

    Attributes:
        listening: A wave was joined and is not over.
    """

    def __init__(
        self,
        answers: Answers,
        exchange: Exchange,
        digest: str,
        hashes: Sequence[str],
        counters: Counter[str],
        *,
        willing: bool,
    ) -> None:
        self._answers, self._exchange, self._digest, self._hashes = answers, exchange, digest, hashes
        self._counters = counters
        self._willing = willing and len(hashes) >= MIN_BLOCKS
        self._missing: Set[int] = frozenset()
        self._queued: set[int] = set()
        self._waiting_bytes = 0
        self._heard = self._wrong = 0
        self.listening = False

    @property
    def patience_seconds(self) -> float:
        """How long to wait for the next block of a wave."""
        return SILENT_SECONDS if self._heard else FIRST_SECONDS

    def offer(self, missing: Set[int]) -> tuple[Range, ...]:
        """What a request says is missing: all of it where a wave would help, else nothing."""
        if not self._willing or len(missing) < max(MIN_BLOCKS, LATE_SHARE * len(self._hashes)):
            return ()
        ranges = to_ranges(missing)
        return ranges if len(ranges) <= MAX_RANGES else ()

    async def join(self, missing: Set[int]) -> bool:
        """Begin to listen; False where that cannot be, or was never offered.

        Args:
            missing: What is of use; looked at again for each message.
        """
        if not self._willing:
            return False
        self._missing, self._heard = missing, 0
        try:
            await self._answers.listen(self._digest, self._arrived)
        except TransportError as error:
            log.info("the wave of %s cannot be listened to: %s", self._digest, error)
            self._willing = False
            return False
        self.listening = True
        return True

    async def leave(self) -> None:
        """Listen no more; a wave that brought nothing is the last one that this transfer listens to."""
        if not self.listening:
            return
        self.listening = False
        self._willing = self._willing and self._heard > 0
        await self._answers.deafen(self._digest)

    async def take(self, heard: Answer, missing: Set[int]) -> bool:
        """True for a block that is right and still missing."""
        self._waiting_bytes -= len(heard.data)
        self._queued.discard(heard.index)
        if not heard.data:  # the end of the wave
            await self.leave()
        if not heard.data or heard.index not in missing:
            return False
        if hashlib.sha256(heard.data).hexdigest() == self._hashes[heard.index]:
            self._counters["wave_blocks"] += 1
            self._heard += 1
            return True
        self._counters["wrong_wave_blocks"] += 1
        self._wrong += 1
        if self._wrong >= MAX_WRONG:
            log.warning("the wave of %s is left: %d of its blocks were wrong", self._digest, self._wrong)
            self._willing = False
            await self.leave()
        return False

    def _arrived(self, message: Message) -> None:
        try:
            wave = decode(message.payload, WaveBlocks)
        except DataError as error:
            self._counters["wrong_wave_blocks"] += 1
            log.debug("what came on the wave of %s was dropped: %s", self._digest, error)
            return
        if not self.listening or message.retained:
            return
        if not wave.data and self._heard:
            self._exchange.queue.put_nowait(Answer(HEARD))
        for index, at in enumerate(range(0, len(wave.data), BLOCK_BYTES), wave.first):
            block = wave.data[at : at + BLOCK_BYTES]
            if index not in self._missing or index in self._queued:
                continue
            if self._waiting_bytes + len(block) <= MAX_WAITING_BYTES:
                self._waiting_bytes += len(block)
                self._queued.add(index)
                self._exchange.queue.put_nowait(Answer(HEARD, index=index, data=block))
