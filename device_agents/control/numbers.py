"""Learns the last numbers of this device after the loss of its disk, and notices another agent under its name.

Both come from the device's own report, which the broker retains and the controller sends.

The clock is not asked: after a new image it may show 1970, or a day in the future.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from securesystemslib.signer import Key

from device_agents.control.events import EventSender
from device_agents.control.link import ControlLink
from device_agents.storage.journal import Journal
from device_agents.threads import in_thread
from edgekit.bounds import MAX_INTEGER
from edgekit.errors import DataError, DiskError, EdgekitError, SignatureError, TransportError
from edgekit.identity.series import used_up
from edgekit.mqtt import messages, topics
from edgekit.protocols import Clock, Message, Transport
from edgekit.repeats import Repeats
from edgekit.trust.envelopes import open_envelope

log = logging.getLogger(__name__)

MAX_WAITING = 16
SAME_EVENT_SECONDS = 60.0
TAKEN, LEARNED = "name-taken", "numbers-learned"


class NumberFollower:
    """Lets the journal's numbers go on above those that this device used before.

    Its own report is read after the start, as the broker retains it, and whenever the controller sends it. It is
    believed because this device's key has signed it, so it needs no clock. Notices are believed because the director
    has signed them.

    Args:
        device, fleet: Names of this device and its fleet.
        run: Random id of this run of the agent, which its reports carry.
        transport: Connection to the broker.
        link: Sends a report when the numbers have changed.
        journal: Holds the numbers.
        own_key: This device's public key.
        director_key: Gives the key that must have signed a notice.
        events: Sends an event when numbers were learned, or another agent uses the name.
        clock: Time.
    """

    def __init__(
        self,
        device: str,
        fleet: str,
        run: str,
        *,
        transport: Transport,
        link: ControlLink,
        journal: Journal,
        own_key: Key,
        director_key: Callable[[], Awaitable[Key]],
        events: EventSender,
        clock: Clock,
    ) -> None:
        self._device, self._fleet, self._run = device, fleet, run
        self._transport, self._link, self._journal = transport, link, journal
        self._own_key, self._director_key, self._events = own_key, director_key, events
        self._waiting: asyncio.Queue[tuple[Callable[[bytes], Awaitable[None]], bytes]] = asyncio.Queue(MAX_WAITING)
        self._topic = topics.device(fleet, device, "reported")
        self._clock = clock
        self._heard = False  # a report of this run was received back
        self._takeovers = 0
        self._told = Repeats(1, SAME_EVENT_SECONDS)

    async def start(self) -> None:
        """Read this device's own report after each connect, the first before a report of this run can replace it."""
        self._transport.on_connection(self._on_connection)
        await self._read_report(b"")

    def on_unasked(self, answer: messages.Answer) -> None:
        """Take an answer of the controller that no request asked for: this device's own report, or a notice."""
        self._put(self._follow_report if answer.id == messages.OWN_REPORT else self._follow_notice, answer.data)

    async def run(self) -> None:
        """Follow reports and notices until cancelled."""
        while True:
            follow, payload = await self._waiting.get()
            try:
                await follow(payload)
            except TransportError as error:
                log.info("this device's own report cannot be read now: %s", error)
            except DiskError as error:  # the controller sends its notice again with a later report
                log.error("the learned numbers cannot be noted: %s", error)
            except EdgekitError as error:
                log.warning("a message about this device's numbers was ignored: %s: %s", type(error).__name__, error)

    def _on_connection(self, connected: bool) -> None:
        if not connected:
            self._put(self._read_report, b"")  # made with the other subscriptions of the next connection
            return
        if self._transport.takeovers > self._takeovers:
            self._takeovers = self._transport.takeovers
            self._tell_taken("the broker says that another client connected under it")

    async def _read_report(self, _: bytes) -> None:
        await self._transport.subscribe(self._topic, self._on_report)

    def _on_report(self, message: Message) -> None:
        if message.payload:
            self._put(self._follow_report, message.payload)

    def _put(self, follow: Callable[[bytes], Awaitable[None]], payload: bytes) -> None:
        try:
            self._waiting.put_nowait((follow, payload))
        except asyncio.QueueFull:
            log.warning("a message about this device's numbers was dropped, because %d are waiting", MAX_WAITING)

    async def _follow_report(self, payload: bytes) -> None:
        try:
            report = open_envelope(payload, messages.Reported, self._own_key)
        except (DataError, SignatureError) as error:
            log.info("the retained report was not made with this device's key: %s", error)
            return
        if (report.device, report.fleet) != (self._device, self._fleet):
            return
        if report.run == self._run:
            self._heard = True
            await self._transport.unsubscribe(self._topic)  # only reports of this run follow
            return
        if self._heard and report.run:
            self._tell_taken(f"run {report.run} of an agent reports under it, this is run {self._run}")
        if report.number <= self._journal.last_report:
            return
        await self._continue_above(
            f"the broker or the controller has its report {report.number}",
            report=report.number,
            session=report.session,
            assignment=report.assignment,
            command=report.command,
        )

    async def _follow_notice(self, payload: bytes) -> None:
        notice = open_envelope(payload, messages.Notice, await self._director_key())
        if (notice.device, notice.fleet) != (self._device, self._fleet):
            raise DataError(f"a notice for {notice.device[:64]!r} of fleet {notice.fleet[:64]!r}")
        if notice.kind != messages.NUMBERS:
            log.error("the controller says: %s", notice.message)
        elif notice.report > self._journal.last_report:
            await self._continue_above(
                f"the controller has report {notice.report}",
                report=notice.report,
                session=notice.session,
                command=notice.command,
            )

    def _tell_taken(self, found: str) -> None:
        """Send an event about another agent with this device's identity, once a minute."""
        if not self._told.take(TAKEN, self._clock.monotonic()).allowed:
            return
        message = f"the name {self._device} is used twice: {found}. Two devices have one identity"
        log.error("%s", message)
        self._events.send(TAKEN, "", "", message)

    async def _continue_above(self, found: str, **numbers: int) -> None:
        if numbers.get("report", 0) >= MAX_INTEGER:
            raise DataError(used_up(self._device, numbers["report"]))
        if any(number >= MAX_INTEGER for number in numbers.values()):
            raise DataError(f"a number is out of range: {numbers}, expected less than {MAX_INTEGER}")
        last = self._journal.last_report
        if not await in_thread(self._journal.continue_above, **numbers):
            return
        message = (
            f"this device's last report was {last}, and {found}: it was re-imaged, its disk was restored, or another "
            "device uses its name. Its numbers go on above."
        )
        if self._told.take(LEARNED, self._clock.monotonic()).allowed:  # two devices of one name learn without end
            log.warning("%s", message)
            detail: dict[str, Any] = {"last": last, **numbers}
            self._events.send(LEARNED, "", "", message, detail)
        self._link.changed()
