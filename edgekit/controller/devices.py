"""The device service: stores reports, presence, events, results and telemetry of devices, and sends commands."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from securesystemslib.signer import CryptoSigner, Key

from edgekit.controller.clocks import DeviceClocks
from edgekit.controller.refusals import RefusalService
from edgekit.errors import DataError, NotFoundError, SignatureError, TransportError, UnavailableError
from edgekit.identity.series import RunHistory, is_behind
from edgekit.mqtt import topics
from edgekit.mqtt.messages import (
    NOTICE,
    NUMBERS,
    OWN_REPORT,
    Answer,
    Command,
    Event,
    Notice,
    Presence,
    Reported,
    Result,
    Telemetry,
    decode,
    encode,
)
from edgekit.protocols import Clock, Message, Transport
from edgekit.trust.envelopes import T, open_envelope, seal
from edgekit.trust.keys import parse_public

if TYPE_CHECKING:
    from edgekit.state import FleetState

log = logging.getLogger(__name__)

INBOX_MESSAGES = 10_000
MAX_NOTICES = 1000
GATHER_SECONDS = 0.02  # messages of this time are handled together, because each change of threads costs CPU
MAX_BATCH = 64
HELD_SECONDS = 60.0  # longer than a standby needs to notice that the leader has ended
RETAINED = ("reported", "presence")
DRIFT_KINDS = ("drift", "drift-ended")
SAME_EVENT_SECONDS = 60.0
RETRY_SECONDS = 1.0


class Arrived(NamedTuple):
    """A received message, and the wall clock seconds of its arrival."""

    message: Message
    at: float


class DeviceService:
    """Verifies and stores devices' messages, and sends operators' commands to devices.

    Args:
        fleet, transport, state, clock: As Controller.
        director: Signs commands.
        refusals: Knows removed and quarantined devices.
        quarantine_clones: Put a name that two devices use into quarantine.
        leading: True while this controller stores messages. Else it keeps those of the last HELD_SECONDS, which it
            stores if it begins to lead: the leader before may not have stored them.

    Attributes:
        clocks: Differences of the devices' clocks.
        dropped: Messages that were dropped because the inbox was full.
        failures: Messages that failed with an unexpected error.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        state: FleetState,
        clock: Clock,
        director: CryptoSigner,
        refusals: RefusalService,
        quarantine_clones: bool = False,
        leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._fleet = fleet
        self._transport = transport
        self._state = state
        self._clock = clock
        self._director = director
        self._refusals, self._quarantine_clones = refusals, quarantine_clones
        self._leading = leading
        self._inbox: deque[Arrived] = deque()
        self._wake = asyncio.Event()
        self._subscribing: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._keys: dict[str, Key] = {}
        self._rejected_at: dict[tuple[str, str], float] = {}
        self._notices: deque[tuple[str, Answer]] = deque(maxlen=MAX_NOTICES)
        self._runs, self._sessions = RunHistory(), RunHistory()
        self._handlers: dict[str, Callable[[str, Arrived], None]] = {
            "reported": self._save_report,
            "presence": self._save_presence,
            "event": self._save_event,
            "result": self._save_result,
            "telemetry": self._save_telemetry,
        }
        self.clocks = DeviceClocks()
        self.dropped = 0
        self.failures = 0

    async def start(self) -> None:
        """Subscribe to the devices' topics. Not a shared subscription: each controller needs the retained messages."""
        self._worker = asyncio.get_running_loop().create_task(self._work())
        for kind in self._handlers:
            await self._transport.subscribe(topics.device(self._fleet, "+", kind), self._put)

    async def stop(self) -> None:
        """Stop handling messages."""
        tasks = [task for task in (self._worker, self._subscribing) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def leading_changed(self, leading: bool) -> None:
        """Store what was kept, and get the retained messages again: this controller has dropped older ones."""
        self._wake.set()
        if leading and self._transport.connected:
            self._subscribing = asyncio.get_running_loop().create_task(self._get_retained())

    async def _get_retained(self) -> None:
        try:
            for kind in RETAINED:
                await self._transport.subscribe(topics.device(self._fleet, "+", kind), self._put)
        except TransportError as error:
            log.info("retained messages come with the next connection to the broker: %s", error)

    async def send_commands(self) -> None:
        """Send the operators' commands to the devices that are online.

        Raises:
            TransportError: the broker cannot be reached; the next call sends them.
        """
        now = self._clock.wall()
        for stored in await asyncio.to_thread(self._state.commands.to_send, now):
            command = Command(
                device=stored.device,
                fleet=self._fleet,
                number=stored.number,
                expires=stored.expires,
                kind=stored.kind,
                args=stored.args,
            )
            payload = seal(command, self._director)
            topic = topics.device(self._fleet, stored.device, "command")
            await self._transport.publish(topic, payload, qos=1, expiry_seconds=max(1, int(stored.expires - now)))
            await asyncio.to_thread(self._state.commands.sent, stored.device, stored.number)

    async def send_notices(self) -> None:
        """Send what devices must be told unasked.

        Raises:
            TransportError: the broker cannot be reached; a device that still needs its notice causes it again.
        """
        while self._notices:
            device, answer = self._notices.popleft()
            await self._transport.publish(topics.answer(self._fleet, device), encode(answer))

    def _put(self, message: Message) -> None:
        now = self._clock.wall()
        if not self._leading():
            while self._inbox and (len(self._inbox) >= INBOX_MESSAGES or self._inbox[0].at < now - HELD_SECONDS):
                self._inbox.popleft()
        elif len(self._inbox) >= INBOX_MESSAGES:
            self.dropped += 1  # the device reports its state again with the next heartbeat
            return
        self._inbox.append(Arrived(message, now))
        self._wake.set()

    async def _work(self) -> None:
        while True:
            if not self._inbox or not self._leading():
                self._wake.clear()
                await self._wake.wait()
                continue
            await asyncio.sleep(GATHER_SECONDS)
            batch = deque(self._inbox.popleft() for _ in range(min(len(self._inbox), MAX_BATCH)))
            try:
                await asyncio.to_thread(self._handle_all, batch)
            except UnavailableError as error:
                self._inbox.extendleft(reversed(batch))
                log.warning("%d messages will be stored later: %s", len(batch), error)
                await asyncio.sleep(RETRY_SECONDS)

    def _handle_all(self, batch: deque[Arrived]) -> None:
        """Handle messages and take them off `batch`. Raises UnavailableError where one must be handled again."""
        while batch:
            try:
                self._handle(batch[0])
            except UnavailableError:
                raise
            except Exception:  # supervision boundary, counted: an unexpected error must not end the worker
                self.failures += 1
                log.exception("a message on %s could not be handled", batch[0].message.topic)
            batch.popleft()

    def _handle(self, arrived: Arrived) -> None:
        message = arrived.message
        where = topics.parse_device(message.topic)
        if where is None or where.kind not in self._handlers or not message.payload:
            return
        if where.device in self._refusals.refused and not message.retained:
            self._refusals.heard(where.device)
        try:
            self._handlers[where.kind](where.device, arrived)
        except NotFoundError as error:
            if where.device not in self._refusals.refused and where.device not in self._state.lifecycle.refused():
                self._reject(where.device, "unknown-device", error)
        except SignatureError as error:
            self._reject(where.device, "bad-signature", error)
        except DataError as error:
            self._reject(where.device, "bad-message", error)

    def _save_report(self, device: str, arrived: Arrived) -> None:
        message = arrived.message
        report = self._open(device, message, Reported)
        if report.fleet != self._fleet:
            raise DataError(f"the report is for fleet {report.fleet[:64]!r}, expected {self._fleet!r}")
        if not message.retained:
            self.clocks.note(device, report.at, self._clock.wall(), self._clock.monotonic())
        if not self._state.devices.save_report(
            report, self._clock.wall(), live=not message.retained, payload=message.payload
        ):
            self._explain_drop(report, arrived.at)
        elif report.run and not message.retained and (between := self._runs.note(device, report.run)):
            self._tell_double(device, f"run {report.run} of its agent reported again after run {between}")

    def _explain_drop(self, report: Reported, arrived: float) -> None:
        """Tell a device that lost its disk its last numbers; other dropped reports are repetitions."""
        stored = self._state.devices.numbers(report.device)
        if not is_behind(report, arrived, stored):
            log.debug("report %d of %s is already stored", report.number, report.device)
            return
        message = (
            f"report {report.number} was dropped, because report {stored.report} is stored: was this device re-imaged? "
            "The controller tells it its last numbers"
        )
        if stored.payload:  # proves itself, also to a device whose clock does not let it verify metadata yet
            self._notices.append((report.device, Answer(id=OWN_REPORT, data=stored.payload)))
        else:
            numbers = {"report": stored.report, "session": stored.session, "command": stored.command}
            self._notify(report.device, NUMBERS, message, **numbers)
        self.tell(report.device, "numbers-behind", "", message)

    def _notify(self, device: str, kind: str, message: str, **numbers: int) -> None:
        notice = Notice(device, self._fleet, kind, self._clock.wall(), message, **numbers)
        self._notices.append((device, Answer(id=NOTICE, data=seal(notice, self._director))))

    def _tell_double(self, device: str, found: str) -> None:
        message = f"{found}: two devices use the name {device}"
        self.tell(device, "name-used-twice", "", message)
        if self._quarantine_clones:
            self._state.lifecycle.quarantine(device, message, self._clock.wall())

    def _save_presence(self, device: str, arrived: Arrived) -> None:
        self._state.devices.get(device)
        presence = decode(arrived.message.payload, Presence)
        self._state.devices.save_presence(device, presence, self._clock.wall())
        if not presence.online or arrived.message.retained or self._runs.knows(device):
            return
        if between := self._sessions.note(device, str(presence.session)):  # an older agent, whose reports name no run
            found = f"session {presence.session} began again after session {between}"
            self.tell(
                device, "name-used-twice", "", f"{found}: two devices use the name {device}, or its disk was restored"
            )

    def _save_event(self, device: str, arrived: Arrived) -> None:
        event = self._open(device, arrived.message, Event)
        if event.kind in DRIFT_KINDS:
            self._state.drift.save(event, self._clock.wall())
        else:
            self._state.devices.add_event(event, self._clock.wall())

    def _save_result(self, device: str, arrived: Arrived) -> None:
        result = self._open(device, arrived.message, Result)
        if not self._state.commands.save_result(result):
            log.info("%s answered command %d, which waits for no answer", device, result.number)

    def _save_telemetry(self, device: str, arrived: Arrived) -> None:
        self._state.devices.get(device)
        telemetry = decode(arrived.message.payload, Telemetry)
        if telemetry.device != device:
            raise DataError(f"the telemetry names device {telemetry.device[:64]!r} on the topic of {device!r}")
        now = self._clock.wall()
        self._state.telemetry.add(telemetry, now)
        self._state.devices.save_telemetry(msgspec.structs.replace(telemetry, sketches={}), now)

    def _open(self, device: str, message: Message, kind: type[T]) -> T:
        return self.open_from(device, message.payload, kind)

    def open_from(self, device: str, payload: bytes, kind: type[T]) -> T:
        """Verify an envelope with the key of a device and decode its message, which must name the same device.

        Raises:
            NotFoundError: no such device is enrolled.
            SignatureError, DataError: it is not signed by the device, or is not such a message.
        """
        pem = self._state.devices.get(device).public_key
        if pem not in self._keys:
            self._keys[pem] = parse_public(pem.encode(), f"public key of {device}")
        opened = open_envelope(payload, kind, self._keys[pem])
        named = msgspec.structs.asdict(opened).get("device")
        if named != device:
            raise DataError(f"{kind.__name__} names device {str(named)[:64]!r} on the topic of {device!r}")
        return opened

    def _reject(self, device: str, kind: str, error: Exception) -> None:
        """Store an event about a message that cannot be verified or read."""
        self.tell(device, kind, type(error).__name__, str(error))

    def tell(self, device: str, kind: str, error: str, message: str) -> None:
        """Store an event of the controller, once a minute for each device and kind."""
        now = self._clock.wall()
        if now - self._rejected_at.get((device, kind), float("-inf")) < SAME_EVENT_SECONDS:
            return
        if len(self._rejected_at) >= INBOX_MESSAGES:
            self._rejected_at.clear()
        self._rejected_at[device, kind] = now
        log.warning("%s: %s: %s", device, kind, message)
        self._state.devices.add_event(Event(device=device, kind=kind, at=now, error=error, message=message), now)
