"""The journal: each model's update state, and the device's rising numbers, kept across power cuts.

Each record is stored twice, followed by its sha256. When the disk damaged a file, its copy is read. When both are
damaged, the record is rebuilt from the rest of the disk, and the damage is reported.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from device_agents.deployment import UpdateRecord, UpdateState, with_highest
from device_agents.storage.slot_check import rebuilt_state
from edgekit.errors import DataError, DiskError
from edgekit.protocols import Disk

DEVICE_FORMAT = 1
MODEL_FORMAT = 2  # 1 had neither the version of the highest release nor conditions of deployments
REPORTS_AT_ONCE = 1000
_DEVICE = "journal/device.json"
_MODELS = "journal/models"
_COPIES = "copies"
_SUFFIX = ".json"
_RESERVE = "journal/reserve"
RESERVE_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class DeviceRecord(msgspec.Struct, frozen=True):
    """Numbers of the whole device.

    Attributes:
        session: Number of the present run of the agent.
        reports: Upper bound of the report numbers used so far; reserved in steps, so that a report needs no write.
        assignment: Highest accepted assignment version.
        command: Highest accepted command number.
        metadata: Highest trusted TUF version, by role.
        running: True until the agent has stopped in order.
        boot: Boot id of the machine in which the session began; empty where the system has none.
        format: Format number of the journal.
    """

    session: int = 0
    reports: int = 0
    assignment: int = 0
    command: int = 0
    metadata: dict[str, int] = {}
    running: bool = False
    boot: str = ""
    format: int = DEVICE_FORMAT


class ModelRecord(msgspec.Struct, frozen=True):
    """One model's update state."""

    state: UpdateRecord
    format: int = MODEL_FORMAT


_FORMATS: dict[type, int] = {DeviceRecord: DEVICE_FORMAT, ModelRecord: MODEL_FORMAT}
_R = TypeVar("_R", DeviceRecord, ModelRecord)


class Journal:
    """Durable state of the agent, every write of it atomic. Threads may use it at once.

    Args:
        disk: The device's folder.

    Attributes:
        damage: Messages about files that could not be read since the journal was opened, for the events.
        ended: How the previous session ended: ``order`` (stopped), ``crash`` (the process died, the machine stayed up)
            or ``cut`` (power cut or reboot).

    Raises:
        DataError: the journal was written by another version of the agent.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.RLock()
        self.damage: list[str] = []
        self.ended = "order"
        stored = self._read(_DEVICE, DeviceRecord)
        self._record = stored or DeviceRecord()
        if stored is None and self.damage:
            self._record = self._rebuilt(self._record)
        self._next_report = self._record.reports

    @property
    def record(self) -> DeviceRecord:
        """The device's numbers."""
        return self._record

    def begin_session(self, boot: str = "") -> int:
        """Begin a session and return its number.

        Args:
            boot: Boot id of the machine; empty where the system has none.
        """
        self._write_reserve()
        before = self._record
        self.ended = "order" if not before.running else "crash" if before.boot == boot else "cut"
        fresh = msgspec.structs.replace(before, session=before.session + 1, running=True, boot=boot)
        try:
            self._write(fresh)
        except DiskError as error:
            # Installed models must answer even so. A session number that is used twice can only confuse a late will.
            log.error("the session number cannot be written, installed models answer: %s", error)
            self._record = fresh
        return self._record.session

    def end_session(self) -> None:
        """Note that the agent stopped in order."""
        try:
            self._change(running=False)
        except DiskError as error:
            log.warning("the end of the session cannot be written: %s", error)

    def next_report(self) -> int:
        """A number higher than that of every report before, also after a power cut. Raises DiskError."""
        with self._lock:
            if self._next_report >= self._record.reports:
                self._change(reports=self._record.reports + REPORTS_AT_ONCE)
            self._next_report += 1
            return self._next_report

    def continue_above(self, *, report: int = 0, session: int = 0, assignment: int = 0, command: int = 0) -> bool:
        """Let this device's numbers go on above those that it used before it lost its disk; lower ones change nothing.

        Returns:
            True if a number was raised.

        Raises:
            DiskError: they cannot be noted.
        """
        with self._lock:
            record = self._record
            changes = {
                "reports": max(record.reports, report),
                "session": max(record.session, session),
                "assignment": max(record.assignment, assignment),
                "command": max(record.command, command),
            }
            if report <= self._next_report and all(getattr(record, name) == value for name, value in changes.items()):
                return False
            self._change(**changes)
            self._next_report = max(self._next_report, report)
            return True

    @property
    def last_report(self) -> int:
        """The number of the last report, or a higher one that no report has had."""
        return self._next_report

    def accept_assignment(self, version: int) -> None:
        """Note the version of an accepted assignment. Raises DiskError."""
        with self._lock:
            if version > self._record.assignment:
                self._change(assignment=version)

    def accept_command(self, number: int) -> None:
        """Note the number of an accepted command, before it runs. Raises DiskError."""
        with self._lock:
            if number > self._record.command:
                self._change(command=number)

    def note_metadata(self, versions: Mapping[str, int]) -> None:
        """Note the trusted metadata versions. Raises DiskError."""
        with self._lock:
            if dict(versions) != self._record.metadata:
                self._change(metadata=dict(versions))

    def models(self) -> dict[str, UpdateRecord]:
        """Every model's state, by name."""
        files = {*self._disk.list(_MODELS), *self._disk.list(_copy(_MODELS))}
        states: dict[str, UpdateRecord] = {}
        for name in sorted(entry.removesuffix(_SUFFIX) for entry in files if entry.endswith(_SUFFIX)):
            record = self._read(f"{_MODELS}/{name}{_SUFFIX}", ModelRecord)
            states[name] = with_highest(record.state) if record else rebuilt_state(self._disk, name)
        return states

    def save(self, model: str, state: UpdateRecord) -> None:
        """Store a model's state. Raises DiskError."""
        with self._lock:
            self._put(f"{_MODELS}/{model}{_SUFFIX}", msgspec.json.encode(ModelRecord(state)))
            if state.name is UpdateState.IDLE:
                self._write_reserve()

    def _put(self, name: str, data: bytes) -> None:
        """Write a record and its copy. On a full disk the reserve is removed, so that the agent can still work."""
        sealed = data + b"\n" + hashlib.sha256(data).hexdigest().encode()
        try:
            self._disk.write(name, sealed)
        except DiskError:
            if not self._disk.exists(_RESERVE):
                raise
            self._disk.remove(_RESERVE)
            self._disk.write(name, sealed)
        try:
            self._disk.write(_copy(name), sealed)
        except DiskError as error:
            log.warning("the copy of %s cannot be written: %s", name, error)
            self._disk.remove(_copy(name))  # an outdated copy would be worse than none

    def _write_reserve(self) -> None:
        if not self._disk.exists(_RESERVE):
            try:
                self._disk.write(_RESERVE, os.urandom(RESERVE_BYTES))  # random bytes, which no file system compresses
            except DiskError as error:
                log.warning("no space can be reserved for the journal: %s", error)

    def _change(self, **changes: object) -> None:
        with self._lock:
            self._write(msgspec.structs.replace(self._record, **changes))

    def _write(self, record: DeviceRecord) -> None:
        self._put(_DEVICE, msgspec.json.encode(record))
        self._record = record

    def _rebuilt(self, record: DeviceRecord) -> DeviceRecord:
        """`record` with the highest assignment version in the models' records, against replayed assignments."""
        states = self.models().values()
        versions = [
            one.assignment for state in states for one in (state.deployment, state.offered, state.failed) if one
        ]
        return msgspec.structs.replace(record, assignment=max(versions, default=0))

    def _read(self, name: str, kind: type[_R]) -> _R | None:
        """A record, from its copy when the file is damaged; None when neither can be read."""
        for file in (name, _copy(name)):
            try:
                record = msgspec.json.decode(_unsealed(self._disk.read(file)), type=kind)
            except FileNotFoundError:
                continue
            except (msgspec.MsgspecError, DataError, DiskError, UnicodeDecodeError, RecursionError) as error:
                fault = f"{self._disk.path(file)} cannot be read: {error}"
                if fault not in self.damage:
                    log.error("journal: %s", fault)
                    self.damage.append(fault)
                continue
            newest = _FORMATS[kind]
            if not 1 <= record.format <= newest:
                raise DataError(
                    f"journal file {self._disk.path(file)} has format {record.format}, this agent reads up to {newest}",
                    advice="Another version of edgekit-agent wrote it; install that version.",
                )
            return record
        return None


def _copy(name: str) -> str:
    """Disk name of the copy of a journal file or folder."""
    folder, _, rest = name.partition("/")
    return f"{folder}/{_COPIES}/{rest}"


def _unsealed(raw: bytes) -> bytes:
    """The record without its digest, which is checked; older agents wrote none. Raises DataError."""
    data, newline, digest = raw.partition(b"\n")
    if newline and hashlib.sha256(data).hexdigest().encode() != digest:
        raise DataError("its sha256 does not match, so the disk has damaged it")
    return data
