"""Sends the samples of the spool to the controller when the link is free, and removes those that it has stored."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from securesystemslib.signer import CryptoSigner

from device_agents.control.requests import PendingRequest, RequestClient
from device_agents.spool.rules import Entry
from device_agents.spool.store import Spool, Spooled
from device_agents.threads import in_thread
from edgekit.errors import DataError, DiskError, PacketTooLargeError, ShortageError, TransportError
from edgekit.mqtt import messages, topics
from edgekit.mqtt.sample_messages import SampleHead, SamplePart
from edgekit.mqtt.sample_parts import part, parts_of
from edgekit.protocols import Transport
from edgekit.trust.envelopes import seal
from edgekit.waiting import within

_log = logging.getLogger(__name__)

ANSWER_SECONDS = 30.0
SHORTEST_PAUSE, LONGEST_PAUSE = 5.0, 3600.0
LONGEST_BUSY = 86_400.0


class Timings(NamedTuple):
    """Seconds: how often the link is looked at, and how long an answer may take."""

    survey_seconds: float = 5.0
    answer_seconds: float = ANSWER_SECONDS
    shortest_pause: float = SHORTEST_PAUSE


class _HeldError(Exception):
    """The link is needed or not free now."""


class Uploader:
    """Sends samples one after another, each with the same id until the controller has stored it.

    Args:
        device, fleet: Names of the device and its fleet.
        spool: The samples.
        requests: Receives the answers.
        transport: Connection to the broker.
        signer: The device's private key.
        hold: Says why nothing may be sent now; empty where it may.
        allowed: Whether inputs of a model may leave the device, now.
        stored: Set when a new sample is in the spool.
        timings: Intervals.
        counts: Where samples are counted; None for a Counter of its own.

    Attributes:
        counts: Rising counts: ``sent`` samples, and ``refused``, ``damaged`` and ``withdrawn`` ones, which are removed.
        waiting: Why nothing is sent at present; empty where samples are sent, or there are none.
    """

    def __init__(
        self,
        device: str,
        fleet: str,
        *,
        spool: Spool,
        requests: RequestClient,
        transport: Transport,
        signer: CryptoSigner,
        hold: Callable[[], str],
        allowed: Callable[[str], bool],
        stored: asyncio.Event,
        timings: Timings | None = None,
        counts: Counter[str] | None = None,
    ) -> None:
        self._device, self._fleet, self._spool, self._requests = device, fleet, spool, requests
        self._transport, self._signer, self._hold, self._allowed = transport, signer, hold, allowed
        self._stored, self._timings = stored, timings or Timings()
        self._failures = 0
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.waiting = ""

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._stored.clear()
            entry = self._spool.next()
            if entry is None:
                self._failures, self.waiting = 0, ""
                await self._stored.wait()
                continue
            try:
                self._check_free()
                await self._transport.wait_connected(self._timings.survey_seconds)
                pause = await self._send(entry)
            except _HeldError as error:
                self.waiting, pause = str(error), self._timings.survey_seconds
            except (TransportError, asyncio.TimeoutError) as error:
                pause = self._fail(str(error) or "no controller acknowledged the sample")
            except DiskError as error:
                pause = self._fail(str(error))
            if pause:
                await asyncio.sleep(pause)

    def _check_free(self) -> None:
        if reason := self._hold():
            raise _HeldError(reason)

    def _fail(self, reason: str, retry_seconds: float = 0.0) -> float:
        """Note a failure; the seconds until the next attempt, doubled with each, with full jitter."""
        if reason != self.waiting:
            _log.info("samples wait: %s", reason)
        self._failures, self.waiting = self._failures + 1, reason
        most = min(self._timings.shortest_pause * 2 ** min(self._failures, 16), LONGEST_PAUSE)
        return max(random.uniform(most / 2, most), retry_seconds)

    async def _send(self, entry: Entry) -> float:
        """Send one sample. Returns the seconds to wait before the next.

        Raises:
            TransportError, asyncio.TimeoutError: it is not known to be stored; it is sent again.
        """
        try:
            content = await in_thread(self._spool.read, entry.id)
        except ShortageError:
            raise
        except (DataError, DiskError) as error:
            _log.warning("a sample is given up: %s", error)
            return await self._drop(entry, "damaged")
        if not self._allowed(content.model):
            return await self._drop(entry, "withdrawn")
        answers: asyncio.Queue[messages.Answer | None] = asyncio.Queue()
        with contextlib.closing(PendingRequest(self._requests, answers.put_nowait)) as pending:
            pending.use_id(entry.id)
            answer = await self._exchange(entry.id, content, answers)
        if answer.error == "busy":
            later = answer.retry_seconds if 0 <= answer.retry_seconds <= LONGEST_BUSY else 0.0  # NaN is in no range
            return self._fail(f"the controller takes no samples now: {answer.message[:300]}", later)
        if answer.error:
            _log.warning("the controller refused sample %s: %s %s", entry.id, answer.error[:30], answer.message[:300])
            return await self._drop(entry, "refused")
        self._failures, self.waiting = 0, ""
        return await self._drop(entry, "sent")

    async def _exchange(
        self, sample: str, content: Spooled, answers: asyncio.Queue[messages.Answer | None]
    ) -> messages.Answer:
        """Send the parts; the answer that ends it: stored, or an error."""
        head = SampleHead(
            self._device,
            self._fleet,
            sample,
            content.model,
            content.digest,
            content.at,
            len(content.sealed),
            hashlib.sha256(content.sealed).hexdigest(),
        )
        signed, total = seal(head, self._signer), parts_of(len(content.sealed))
        await self._publish(part(sample, content.sealed, 0, signed))
        answer = await self._next(answers)
        if not answer.error:
            for index in range(max(1, answer.index), total):
                self._check_free()
                await self._publish(part(sample, content.sealed, index, signed))
        while not answer.error and (answer.index, answer.total) != (total, total):
            answer = await self._next(answers)  # the first part may be answered twice
        return answer

    async def _next(self, answers: asyncio.Queue[messages.Answer | None]) -> messages.Answer:
        answer = await within(self._timings.answer_seconds, answers.get())
        if answer is None:
            raise TransportError("the agent is stopping")
        return answer

    async def _publish(self, one: SamplePart) -> None:
        topic = topics.device(self._fleet, self._device, "sample")
        try:
            await self._transport.publish(topic, messages.encode(one), qos=1, expiry_seconds=60)
        except PacketTooLargeError as error:
            raise TransportError(f"the broker accepts no part of a sample: {error}") from error

    async def _drop(self, entry: Entry, why: str) -> float:
        await in_thread(self._spool.remove, entry.id)
        self.counts[why] += 1
        return 0.0
