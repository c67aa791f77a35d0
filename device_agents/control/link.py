"""The device's control topics: sends presence, reports and events; receives assignments, commands and hints."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from securesystemslib.signer import CryptoSigner

from edgekit.bounds import number_fault
from edgekit.errors import DataError, DiskError, PacketTooLargeError, TransportError
from edgekit.mqtt import messages, topics
from edgekit.mqtt.limits import ADVISED_BYTES, packet_fault
from edgekit.protocols import Clock, Message, Transport, Will
from edgekit.repeats import Repeats
from edgekit.trust.envelopes import seal
from edgekit.waiting import within

log = logging.getLogger(__name__)

MAX_QUEUED_EVENTS = 100
MOST_EVENTS, EVENTS_SECONDS = 10, 60.0
MAX_COMMANDS = 16
STEP_SECONDS = 2.0
SETTLE_SECONDS = 0.5  # a report waits for so long at most until an update that has ended is cleaned up
HEARTBEAT_SHARE = 0.8, 1.0


def presence_will(fleet: str, device: str, session: int) -> Will:
    """The presence message that the broker publishes when this device's connection is lost."""
    return Will(topics.device(fleet, device, "presence"), messages.encode(messages.Presence(False, session)))


class ControlLink:
    """Sends reports and events as soon as there is a broker, and holds the newest assignment, commands and hints.

    Args:
        transport: Connection to the broker, made with `presence_will` of the same session.
        device, fleet: Names of this device and its fleet.
        session: Number of this run of the agent.
        signer: The device's private key.
        clock: Time.
        heartbeat_seconds: Interval at which the report is repeated without a change.
        report: Makes the present report; raises DiskError when its number cannot be noted.

    Attributes:
        commands: Received commands, oldest first.
        hints: The fleet's newest hints.
        hints_changed: Set when `hints` changes.
        dropped: Count of hints that cannot be read, of retained commands, and of commands above MAX_COMMANDS.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        device: str,
        fleet: str,
        session: int,
        signer: CryptoSigner,
        clock: Clock,
        heartbeat_seconds: float,
        report: Callable[[], Awaitable[messages.Reported]],
    ) -> None:
        self._transport, self._clock, self._signer = transport, clock, signer
        self._device, self._fleet, self._session = device, fleet, session
        self._heartbeat_seconds, self._report = heartbeat_seconds, report
        self._queued: deque[tuple[str, bytes]] = deque(maxlen=MAX_QUEUED_EVENTS)  # kind of topic, payload
        self._changed, self._settled = asyncio.Event(), asyncio.Event()
        self._settled.set()
        self._repeats = Repeats(MOST_EVENTS, EVENTS_SECONDS)
        self._step: asyncio.TimerHandle | None = None
        self._birth_sent = False
        self._told_limit = self._told_unsent = 0
        self._stopping = False
        self._desired: bytes | None = None
        self._desired_changed = asyncio.Event()
        self.commands: asyncio.Queue[bytes] = asyncio.Queue(MAX_COMMANDS)
        self.hints = messages.FleetHints()
        self.hints_changed = asyncio.Event()
        self.dropped = 0

    async def start(self) -> None:
        """Subscribe and begin to connect; does not wait for the broker."""
        self._transport.on_connection(self._on_connection)
        await self._transport.subscribe(self._topic("desired"), self._on_desired)
        await self._transport.subscribe(self._topic("command"), self._on_command)
        await self._transport.subscribe(topics.fleet_hints(self._fleet), self._on_hints)
        await self._transport.start()

    async def stop(self) -> None:
        """Send the offline presence and disconnect."""
        self._stopping = True
        self._forget_step()
        if self._transport.connected:
            try:
                await self._send_presence(False)
            except TransportError as error:
                log.info("the offline presence was not sent: %s", error)
        await self._transport.stop()

    def changed(self) -> None:
        """Send a report soon, because its content has changed."""
        self._changed.set()

    def changed_a_step(self) -> None:
        """Send a report within STEP_SECONDS, because an update took a step: steps of that time share one report."""
        if self._step is None:
            self._step = asyncio.get_running_loop().call_later(STEP_SECONDS, self.changed)

    def settling(self, settling: bool) -> None:
        """Say that an update ends, whose last step follows at once: one report tells both. False once it has."""
        if settling:
            self._settled.clear()
        else:
            self._settled.set()

    def event(self, event: messages.Event) -> None:
        """Send one event as soon as there is a broker; at most MAX_QUEUED_EVENTS wait, and the oldest are dropped.

        Of events of one kind, model and error, MOST_EVENTS a minute are sent, and the next one says how many were left
        out: strangers can cause some without end, and the control side keeps a number of them for each device.
        """
        turn = self._repeats.take((event.kind, event.model, event.error), self._clock.monotonic())
        if not turn.allowed:
            return
        if turn.left_out:
            message = f"{event.message} ({turn.left_out} more events like this one were left out)"
            event = msgspec.structs.replace(event, message=message)
        self._queued.append(("event", seal(event, self._signer)))
        self._changed.set()

    async def result(self, result: messages.Result) -> None:
        """Send the result of a command; if there is no broker, it waits for one as events do."""
        payload = seal(result, self._signer)
        try:
            await self._transport.publish(self._topic("result"), payload, qos=1)
        except PacketTooLargeError as error:
            log.error("the result of command %d is dropped: %s", result.number, error)
        except TransportError as error:
            log.warning("the result of command %d waits: %s", result.number, error)
            self._queued.append(("result", payload))
            self._changed.set()

    async def telemetry(self, telemetry: messages.Telemetry) -> None:
        """Send counters. Raises TransportError."""
        await self._transport.publish(self._topic("telemetry"), messages.encode(telemetry))

    async def next_desired(self, timeout_seconds: float | None = None) -> bytes:
        """The newest assignment that was not returned yet. Raises asyncio.TimeoutError when none arrives in time."""
        await within(timeout_seconds, self._desired_changed.wait())
        self._desired_changed.clear()
        assert self._desired is not None  # set before the event
        return self._desired

    async def desired_arrives(self) -> None:
        """Wait until `next_desired` has an assignment to return."""
        await self._desired_changed.wait()

    async def warn_without_broker(self, after_seconds: float) -> None:
        """Log a warning when there is no broker after a while."""
        try:
            await self._transport.wait_connected(after_seconds)
        except TransportError as error:
            log.warning("%s; the agent answers locally, deployments wait", error)

    async def run(self) -> None:
        """Send reports and events until cancelled."""
        while True:
            try:
                # By chance, so that the devices of a fleet do not all report at the same time after a broker's restart.
                await within(self._heartbeat_seconds * random.uniform(*HEARTBEAT_SHARE), self._changed.wait())
            except asyncio.TimeoutError:
                log.debug("heartbeat")
            with contextlib.suppress(asyncio.TimeoutError):
                await within(SETTLE_SECONDS, self._settled.wait())
            self._settled.set()
            self._changed.clear()
            self._forget_step()
            if self._transport.connected:
                await self._send_all()

    def _forget_step(self) -> None:
        if self._step is not None:
            self._step.cancel()
            self._step = None

    async def _send_all(self) -> None:
        try:
            if not self._birth_sent:
                await self._send_presence(True)
                self._birth_sent = True
            await self._send_report()
            while self._queued:
                kind, payload = self._queued[0]
                await self._send(kind, payload)
                self._queued.popleft()
        except TransportError as error:
            log.warning("the report waits: %s", error)
            if self._transport.connected:  # otherwise it is sent at the next connection
                self._changed.set()
                await asyncio.sleep(1.0)

    async def _send_report(self) -> None:
        try:
            report = await self._report()
        except DiskError as error:  # its number could not be noted: events are sent, the next heartbeat tries again
            log.error("the report waits: %s", error)
            return
        await self._send("reported", seal(report, self._signer), retain=True)

    async def _send(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        """Send one message, or give it up where the broker accepts none of this size. Raises TransportError."""
        try:
            await self._transport.publish(self._topic(kind), payload, qos=1, retain=retain)
        except PacketTooLargeError as error:
            log.error("a message on %s is dropped: %s", self._topic(kind), error)
            if kind == "reported":
                self._tell_unsent(error)

    def _tell_unsent(self, error: PacketTooLargeError) -> None:
        """Say once for each limit that the report is too large: without it, the device looks as if it were silent."""
        limit = self._transport.packet_limit
        if limit != self._told_unsent:
            self._told_unsent = limit
            message = f"the report cannot be sent: {error}. Set the broker's maximum packet size to {ADVISED_BYTES}"
            kind, now = "report-too-large", self._clock.wall()
            self.event(messages.Event(self._device, kind, now, error=type(error).__name__, message=message))

    async def _send_presence(self, online: bool) -> None:
        presence = messages.Presence(online, self._session)
        await self._transport.publish(self._topic("presence"), messages.encode(presence), qos=1, retain=True)

    def _on_connection(self, connected: bool) -> None:
        if connected:
            log.info("connected to the broker")
            self._check_packets()
        elif not self._stopping:
            log.warning("no connection to the broker; the agent answers locally, deployments wait")
        self._birth_sent = False  # the broker may have published the will since
        self._changed.set()

    def _check_packets(self) -> None:
        """Say once for each limit that blocks cannot come through this broker."""
        limit = self._transport.packet_limit
        fault = packet_fault(limit)
        if fault and limit != self._told_limit:
            log.error("%s", fault)
            self.event(messages.Event(self._device, "packet-limit", self._clock.wall(), message=fault))
        self._told_limit = limit

    def _on_desired(self, message: Message) -> None:
        if message.payload:  # an empty payload clears the retained assignment
            self._desired = message.payload
            self._desired_changed.set()

    def _on_command(self, message: Message) -> None:
        if message.retained:  # a controller retains no command; a stored one is old, or forged
            self.dropped += 1
            return
        try:
            self.commands.put_nowait(message.payload)
        except asyncio.QueueFull:
            self.dropped += 1
            log.warning("a command was dropped, because %d are waiting", MAX_COMMANDS)

    def _on_hints(self, message: Message) -> None:
        try:
            hints = messages.decode(message.payload, messages.FleetHints)
            if fault := _hints_fault(hints):
                raise DataError(fault)
        except DataError as error:
            self.dropped += 1
            log.warning("fleet hints were dropped: %s", error)
            return
        self.hints = hints
        self._transport.spread_reconnects(hints.reconnect_seconds)
        self.hints_changed.set()

    def _topic(self, kind: str) -> str:
        return topics.device(self._fleet, self._device, kind)


def _hints_fault(hints: messages.FleetHints) -> str:
    """Why nobody can obey `hints`; empty if one can."""
    return number_fault("spread_seconds", hints.spread_seconds, 0.0, messages.MAX_SPREAD_SECONDS) or number_fault(
        "reconnect_seconds", hints.reconnect_seconds, 0.0, messages.MAX_RECONNECT_SECONDS
    )
