"""The device service: stores reports, presence, events, results and telemetry of devices, and sends commands."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from securesystemslib.signer import Key

from edgekit.bounds import MAX_INTEGER
from edgekit.controller.clocks import DeviceClocks
from edgekit.controller.director import Director
from edgekit.controller.inbox import Arrived, Inbox
from edgekit.controller.refusals import RefusalService
from edgekit.errors import DataError, NotFoundError, PacketTooLargeError, SignatureError, TransportError
from edgekit.identity.series import RunHistory, is_behind, used_up
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
from edgekit.protocols import Clock, Transport
from edgekit.state.fleet.report_writer import CheckedReport, check_report
from edgekit.state.fleet.telemetry import CheckedTelemetry, check_telemetry
from edgekit.trust.envelopes import T, open_envelope, seal
from edgekit.trust.keys import parse_public

if TYPE_CHECKING:
    from edgekit.state import FleetState, StoredCommand

log = logging.getLogger(__name__)

COMMANDS_AT_ONCE = 50  # a controller that is killed sends so many again at most, which their devices refuse
MAX_NOTICES = 1000
MAX_TOLD = 10_000
RETAINED = ("reported", "presence")
DRIFT_KINDS = ("drift", "drift-ended")
UNINSTALLED = "uninstalled"
SAME_EVENT_SECONDS = 60.0


class _Batch:
    """Checked messages that are stored together.

    Args:
        keys: Public keys (PEM) of the enrolled devices that sent some, by name.

    Attributes:
        reports: Each with its time of arrival.
        presences: Each with its device, and True where it is not a retained one.
        telemetry: Counters and sketches.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self.keys = keys
        self.reports: list[tuple[CheckedReport, float]] = []
        self.presences: list[tuple[str, Presence, bool]] = []
        self.telemetry: list[CheckedTelemetry] = []


class DeviceService:
    """Verifies and stores devices' messages, and sends operators' commands to devices.

    Args:
        fleet, transport, state, clock: As Controller.
        director: Signs commands.
        refusals: Knows removed and quarantined devices.
        quarantine_clones: Put a name that two devices use into quarantine.
        leading: As Inbox.

    Attributes:
        clocks: Differences of the devices' clocks.
        inbox: The messages that wait to be stored.
    """

    def __init__(
        self,
        *,
        fleet: str,
        transport: Transport,
        state: FleetState,
        clock: Clock,
        director: Director,
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
        self.inbox = Inbox(self._store, clock, leading)
        self._subscribing: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._keys: dict[str, Key] = {}
        self._told_at: dict[tuple[str, str], float] = {}
        self._notices: deque[tuple[str, Answer]] = deque(maxlen=MAX_NOTICES)
        self._runs, self._sessions = RunHistory(), RunHistory()
        self._handlers: dict[str, Callable[[str, Arrived, _Batch], None]] = {
            "reported": self._take_report,
            "presence": self._take_presence,
            "event": self._save_event,
            "result": self._save_result,
            "telemetry": self._take_telemetry,
        }
        self.clocks = DeviceClocks()

    async def start(self) -> None:
        """Subscribe to the devices' topics. Not a shared subscription: each controller needs the retained messages."""
        self._worker = asyncio.get_running_loop().create_task(self.inbox.run())
        for kind in self._handlers:
            await self._transport.subscribe(topics.device(self._fleet, "+", kind), self.inbox.put)

    async def stop(self) -> None:
        """Stop handling messages."""
        tasks = [task for task in (self._worker, self._subscribing) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def leading_changed(self, leading: bool) -> None:
        """Store what was kept, and get the retained messages again: this controller has dropped older ones."""
        self.inbox.wake()
        if leading and self._transport.connected:
            self._subscribing = asyncio.get_running_loop().create_task(self._get_retained())

    async def _get_retained(self) -> None:
        try:
            for kind in RETAINED:
                await self._transport.subscribe(topics.device(self._fleet, "+", kind), self.inbox.put)
        except TransportError as error:
            log.info("retained messages come with the next connection to the broker: %s", error)

    async def send_commands(self) -> None:
        """Send the operators' commands to the devices that are online.

        Raises:
            TransportError: the broker cannot be reached; the next call sends the others.
        """
        now = self._clock.wall()
        waiting = await asyncio.to_thread(self._state.commands.to_send, now)
        for at in range(0, len(waiting), COMMANDS_AT_ONCE):
            some = waiting[at : at + COMMANDS_AT_ONCE]
            ends = await asyncio.gather(*(self._send_command(one, now) for one in some), return_exceptions=True)
            done = list(zip(some, ends, strict=True))
            failed = [(one, str(end)) for one, end in done if isinstance(end, PacketTooLargeError)]
            for one, fault in failed:  # it stops no command of another device, and is not tried again
                log.error("command %d of %s was not sent: %s", one.number, one.device, fault)
            await asyncio.to_thread(self._state.commands.sent_all, [one for one, end in done if end is None], failed)
            for end in ends:
                if isinstance(end, BaseException) and not isinstance(end, PacketTooLargeError):
                    raise end

    async def _send_command(self, stored: StoredCommand, now: float) -> None:
        command = Command(
            device=stored.device,
            fleet=self._fleet,
            number=stored.number,
            expires=stored.expires,
            kind=stored.kind,
            args=stored.args,
        )
        payload = seal(command, self._director.signer)
        topic = topics.device(self._fleet, stored.device, "command")
        await self._transport.publish(topic, payload, qos=1, expiry_seconds=max(1, int(stored.expires - now)))

    async def send_notices(self) -> None:
        """Send what devices must be told unasked.

        Raises:
            TransportError: the broker cannot be reached; a device that still needs its notice causes it again.
        """
        while self._notices:
            device, answer = self._notices.popleft()
            await self._transport.publish(topics.answer(self._fleet, device), encode(answer))

    def _store(self, messages: Sequence[Arrived]) -> None:
        """Store messages in one transaction. Raises as `Inbox` expects."""
        told = dict(self._told_at)
        try:
            with self._state.together():
                batch = _Batch(self._state.devices.public_keys({name for one in messages if (name := _sender(one))}))
                for arrived in messages:
                    self._handle(arrived, batch)
                known = self._store_batch(batch)
        except Exception as error:
            self._told_at = told  # what was told is not stored
            if len(messages) > 1 or not isinstance(error, DataError):
                raise
            self._reject(_sender(messages[0]), "bad-message", error)
        else:
            self._compare(batch, known)

    def _handle(self, arrived: Arrived, batch: _Batch) -> None:
        """Check a message, and store it or add it to `batch`."""
        message = arrived.message
        where = topics.parse_device(message.topic)
        if where is None or where.kind not in self._handlers or not message.payload:
            return
        if where.device in self._refusals.refused and not message.retained:
            self._refusals.heard(where.device)
        try:
            if where.device not in batch.keys:
                raise self._state.devices.unknown(where.device)
            self._handlers[where.kind](where.device, arrived, batch)
        except NotFoundError as error:
            if where.device not in self._refusals.refused and where.device not in self._state.lifecycle.refused():
                self._reject(where.device, "unknown-device", error)
        except SignatureError as error:
            self._reject(where.device, "bad-signature", error)
        except DataError as error:
            self._reject(where.device, "bad-message", error)

    def _store_batch(self, batch: _Batch) -> list[int]:
        """Store what was collected; returns for each report the number that is stored instead, 0 for a new one."""
        now, state = self._clock.wall(), self._state
        known = state.devices.save_reports([checked for checked, _ in batch.reports], now) if batch.reports else []
        if batch.presences:  # after the reports: a device that reports has sent its birth before
            state.devices.save_presences([(name, presence) for name, presence, _ in batch.presences], now)
        if batch.telemetry:
            state.telemetry.add_all(batch.telemetry, now)
            state.devices.save_counters([(one.telemetry.device, one.counters) for one in batch.telemetry], now)
        return known

    def _compare(self, batch: _Batch, known: Sequence[int]) -> None:
        """Look in stored messages for devices that lost their disk, and for two devices under one name."""
        for (checked, arrived), number in zip(batch.reports, known, strict=True):
            report = checked.report
            if number > report.number:
                self._explain_drop(report, arrived)
            if number or not report.run or not checked.live:
                continue
            if between := self._runs.note(report.device, report.run):
                self._tell_double(report.device, f"run {report.run} of its agent reported again after run {between}")
        for device, presence, live in batch.presences:  # of older agents, whose reports name no run
            if not presence.online or not live or self._runs.knows(device):
                continue
            if between := self._sessions.note(device, str(presence.session)):
                found = f"session {presence.session} began again after session {between}"
                message = f"{found}: two devices use the name {device}, or its disk was restored"
                self.tell(device, "name-used-twice", "", message)

    def _take_report(self, device: str, arrived: Arrived, batch: _Batch) -> None:
        message = arrived.message
        report = self._open(device, batch.keys[device], message.payload, Reported)
        if report.fleet != self._fleet:
            raise DataError(f"the report is for fleet {report.fleet[:64]!r}, expected {self._fleet!r}")
        if not message.retained:
            self.clocks.note(device, report.at, self._clock.wall(), self._clock.monotonic())
        checked = check_report(report, live=not message.retained, payload=message.payload)
        batch.reports.append((checked, arrived.at))

    def _explain_drop(self, report: Reported, arrived: float) -> None:
        """Tell a device that lost its disk its last numbers; other dropped reports are repetitions."""
        stored = self._state.devices.numbers(report.device)
        if not is_behind(report, arrived, stored):
            log.debug("report %d of %s came after report %d", report.number, report.device, stored.report)
            return
        if stored.report >= MAX_INTEGER:
            self.tell(report.device, "numbers-behind", "", used_up(report.device, stored.report))
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
        self._notices.append((device, Answer(id=NOTICE, data=seal(notice, self._director.signer))))

    def _tell_double(self, device: str, found: str) -> None:
        message = f"{found}: two devices use the name {device}"
        self.tell(device, "name-used-twice", "", message)
        if self._quarantine_clones:
            self._state.lifecycle.quarantine(device, message, self._clock.wall())

    def _take_presence(self, device: str, arrived: Arrived, batch: _Batch) -> None:
        presence = decode(arrived.message.payload, Presence)
        batch.presences.append((device, presence, not arrived.message.retained))

    def _save_event(self, device: str, arrived: Arrived, batch: _Batch) -> None:
        event = self._open(device, batch.keys[device], arrived.message.payload, Event)
        now = self._clock.wall()
        if event.kind in DRIFT_KINDS:
            self._state.drift.save(event, now)
            return
        if event.kind == UNINSTALLED:  # no hour with requests follows that could end its alarms
            self._state.alarms.end_model(device, event.model, now)
        self._state.devices.add_event(event, now)

    def _save_result(self, device: str, arrived: Arrived, batch: _Batch) -> None:
        result = self._open(device, batch.keys[device], arrived.message.payload, Result)
        if not self._state.commands.save_result(result):
            log.info("%s answered command %d, which waits for no answer", device, result.number)

    def _take_telemetry(self, device: str, arrived: Arrived, batch: _Batch) -> None:
        telemetry = decode(arrived.message.payload, Telemetry)
        if telemetry.device != device:
            raise DataError(f"the telemetry names device {telemetry.device[:64]!r} on the topic of {device!r}")
        batch.telemetry.append(check_telemetry(telemetry))

    def open_from(self, device: str, payload: bytes, kind: type[T]) -> T:
        """Verify an envelope with the key of a device and decode its message, which must name the same device.

        Raises:
            NotFoundError: no such device is enrolled.
            SignatureError, DataError: it is not signed by the device, or is not such a message.
        """
        return self._open(device, self._state.devices.get(device).public_key, payload, kind)

    def _open(self, device: str, pem: str, payload: bytes, kind: type[T]) -> T:
        if pem not in self._keys:
            self._keys[pem] = parse_public(pem.encode(), f"public key of {device}")
        opened = open_envelope(payload, kind, self._keys[pem])
        named = getattr(opened, "device", None)
        if named != device:
            raise DataError(f"{kind.__name__} names device {str(named)[:64]!r} on the topic of {device!r}")
        return opened

    def _reject(self, device: str, kind: str, error: Exception) -> None:
        """Store an event about a message that cannot be verified or read."""
        self.tell(device, kind, type(error).__name__, str(error))

    def tell(self, device: str, kind: str, error: str, message: str) -> None:
        """Store an event of the controller, once a minute for each device and kind."""
        now, running = self._clock.wall(), self._clock.monotonic()
        if running - self._told_at.get((device, kind), float("-inf")) < SAME_EVENT_SECONDS:
            return
        if len(self._told_at) >= MAX_TOLD:
            self._told_at.clear()
        self._told_at[device, kind] = running
        log.warning("%s: %s: %s", device, kind, message)
        self._state.devices.add_event(Event(device=device, kind=kind, at=now, error=error, message=message), now)


def _sender(arrived: Arrived) -> str:
    """The device on whose topic a message came; empty where it is no topic of a device."""
    where = topics.parse_device(arrived.message.topic)
    return where.device if where is not None else ""
