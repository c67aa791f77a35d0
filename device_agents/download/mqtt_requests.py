"""Blocks over MQTT: requests missing blocks with credit, takes answers in any order, requests lost blocks again."""

from __future__ import annotations

import asyncio
import logging
import random

from device_agents.control.requests import PendingRequest, RequestClient, check_answer
from device_agents.download.block_sources import Arrival, Inbox, WantedBlocks
from device_agents.download.broadcasts import BroadcastListener
from device_agents.download.gate import Gate
from device_agents.download.http_ranges import HttpRanges
from edgekit.errors import DataError, TransportError
from edgekit.mqtt.messages import Answer, Part
from edgekit.protocols import Clock
from edgekit.transfer.blocks import RoundTrip, Window, to_ranges
from edgekit.transfer.part_size import PartSize
from edgekit.transfer.parts import PartialBlocks

log = logging.getLogger(__name__)

MAX_SILENT_ATTEMPTS = 5
MAX_BUSY_SECONDS = 15.0
RESPONSE_SECONDS = 5.0  # nothing is requested: the last blocks of another source are in the inbox
CLOCK_SECONDS = 0.05  # a sleep may end too early by this much


class MqttRequests:
    """TransferSource over the request and answer topics.

    An answer can also start one of the other sources: it names URLs, or says that a broadcast begins.

    Args:
        digest: Digest of the blob.
        wanted: Blocks of the transfer.
        inbox: Receives the answers.
        client: Client of the topics.
        clock: Monotonic time.
        gate: Limits of the owner.
        ranges, broadcast: The other sources of the transfer.
        round_trip: Round-trip estimate of earlier transfers.

    Attributes:
        round_trip: Round-trip estimate, updated by each answer.
    """

    def __init__(
        self,
        digest: str,
        wanted: WantedBlocks,
        inbox: Inbox,
        *,
        client: RequestClient,
        clock: Clock,
        gate: Gate,
        ranges: HttpRanges,
        broadcast: BroadcastListener,
        round_trip: RoundTrip,
    ) -> None:
        self._digest, self._wanted, self._inbox = digest, wanted, inbox
        self._client, self._clock, self._gate = client, clock, gate
        self._ranges, self._broadcast = ranges, broadcast
        self._pending = PendingRequest(client, self._receive)
        self._partial, self._part_size = PartialBlocks(), PartSize()
        self._sent: dict[str, float] = {}  # request id -> when it was sent
        self._window = Window()
        self._silent = 0
        self._busy = 0
        self._urls_received = False
        self.round_trip = round_trip

    @property
    def active(self) -> bool:
        """False: without requests no answers come."""
        return False

    @property
    def patience_seconds(self) -> float:
        """Until the oldest request times out."""
        if not self._wanted.requested:
            return RESPONSE_SECONDS
        oldest = min(self._wanted.requested.values())
        return max(0.001, oldest + self.round_trip.timeout_seconds - self._clock.monotonic())

    async def request(self) -> None:
        """Request as many waiting blocks as credit and gate allow."""
        waiting = self._wanted.waiting()
        credit = self._window.credit(len(self._wanted.requested))
        if not credit or not waiting:
            return
        allowed = await self._gate.pass_blocks(min(credit, waiting), wait=not self._wanted.requested)
        if not allowed:
            return
        indexes = self._wanted.request(allowed, self._clock.monotonic())
        begun = self._clock.monotonic()
        request_id = await self._client.request_blocks(
            self._pending,
            self._digest,
            to_ranges(indexes),
            len(indexes),
            self._wanted.waiting(),
            missing=self._broadcast.offer(self._wanted.missing),
            urls=self._ranges.enabled and not self._urls_received,
            most=self._part_size.bytes,
        )
        self._sent[request_id] = begun

    async def accept(self, arrival: Arrival) -> bool:
        """Handle an answer: a block, URLs, a broadcast that begins, a busy controller, or an error."""
        answer = arrival.answer
        assert answer is not None  # `_receive` puts one into each arrival
        if answer.urls:
            self._start_ranges(answer.urls)
        elif answer.error == "busy" and answer.wave:
            await self._join_broadcast()
        elif answer.error == "busy":
            if not self._broadcast.active and not self._ranges.active:
                await self._back_off(answer.retry_seconds)
        else:
            check_answer(answer, f"blob {self._digest}")
            if not answer.part:
                self._part_size.arrived(len(answer.data))
            is_whole = not answer.part or len(arrival.data) == answer.part.size
            if is_whole and answer.index in self._wanted.missing:
                self._note_block(answer)
                return True
        return False

    async def on_silence(self) -> None:
        """Requests have timed out: request their blocks again, or fail after MAX_SILENT_ATTEMPTS in a row.

        Raises:
            TransportError: no block arrived in MAX_SILENT_ATTEMPTS.
        """
        self._silent += 1
        self._part_size.silent()
        if self._silent >= MAX_SILENT_ATTEMPTS:
            missing = len(self._wanted.missing)
            raise TransportError(
                f"no block of {self._digest} arrived in {self._silent} attempts, the last ones in parts of "
                f"{self._part_size.bytes} bytes; {missing} are missing"
            )
        since = self._clock.monotonic() - self.round_trip.timeout_seconds
        self._wanted.put_back([i for i, at in self._wanted.requested.items() if at <= since + CLOCK_SECONDS])
        self.round_trip = self.round_trip.lost()
        self._window = self._window.after_loss()

    async def stop(self) -> None:
        """Forget the request ids; answers that still come are foreign."""
        self._pending.close()

    def _receive(self, answer: Answer | None) -> None:
        if answer is None:
            self._inbox.close()
        elif answer.part:
            self._receive_part(answer, answer.part)
        else:
            self._inbox.put(Arrival(self, answer.index, answer.data, answer))

    def _receive_part(self, answer: Answer, part: Part) -> None:
        """Put the block into the inbox, once it is whole. A part that nobody asked for counts as wasted."""
        requested = self._wanted.requested
        if answer.index not in requested:
            self._inbox.put(Arrival(self, answer.index, answer.data, answer))
            return
        try:
            added = self._partial.add(answer.index, part.offset, part.size, answer.data)
        except DataError as error:
            log.warning("a part of block %d of %s was dropped: %s", answer.index, self._digest, error)
            return
        if added.is_new:  # the block is on its way: its time-out begins again
            requested[answer.index] = self._clock.monotonic()
            self._part_size.arrived(len(answer.data))
            self._silent = 0
        data = (added.block or b"") if added.is_new else answer.data
        self._inbox.put(Arrival(self, answer.index, data, answer))

    def _start_ranges(self, urls: tuple[str, ...]) -> None:
        self._urls_received = True  # ask once; blocks that the URLs do not bring are requested here
        self._silent = self._busy = 0
        if self._ranges.enabled and not self._broadcast.active:
            self._wanted.put_back(list(self._wanted.requested))
            self._ranges.start(urls)

    async def _join_broadcast(self) -> None:
        if self._broadcast.active or self._ranges.active:
            return
        self._wanted.put_back(list(self._wanted.requested))
        self._silent = self._busy = 0
        if not await self._broadcast.join():
            await self._back_off(0.0)

    def _note_block(self, answer: Answer) -> None:
        self._wanted.arrived(answer.index)
        sent = self._sent.get(answer.id)  # of the answered request, which may not be the last one for this block
        if sent is not None:
            self.round_trip = self.round_trip.observed(self._clock.monotonic() - sent)
            self._put_back_overtaken(sent)
        self._window = self._window.after_arrival()
        self._silent = self._busy = 0

    def _put_back_overtaken(self, sent: float) -> None:
        """Blocks requested before an answered request, and longer ago than answers take, were lost."""
        since = min(sent, self._clock.monotonic() - self.round_trip.overtaken_seconds)
        lost = [index for index, at in self._wanted.requested.items() if at < since]
        if lost:
            self._wanted.put_back(lost)
            self._window = self._window.after_loss()

    async def _back_off(self, retry_seconds: float) -> None:
        """The controller is busy: wait as long as it says; else longer after each busy answer in a row."""
        self._wanted.put_back(list(self._wanted.requested))
        self._busy = min(self._busy + 1, 6)
        is_given = 0 < retry_seconds <= MAX_BUSY_SECONDS
        wait = retry_seconds if is_given else min(MAX_BUSY_SECONDS, 0.25 * 2.0**self._busy)
        await asyncio.sleep(wait * random.uniform(0.8, 1.2))
