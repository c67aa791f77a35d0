"""What the agent must remember across a power cut: each model's update state, and the numbers that only rise.

Each record is kept twice, with its sha256 behind it: a file that the disk damaged is told apart from one that says
something else, and its copy serves. Where both are damaged, what the rest of the disk says is taken instead, and told.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from device_agents.deployment import S, State
from device_agents.storage.slot_check import rebuilt_state
from edgekit.errors import DataError, DiskError
from edgekit.protocols import Disk

FORMAT = 1
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
        session: Of the present run of the agent.
        reports: No report has carried a higher number; taken in advance, so that a report costs no write.
        assignment: Highest assignment version that was accepted.
        command: Highest command number that was accepted.
        metadata: Highest TUF version that was trusted, by role.
        running: True until the agent has ended in order.
        boot: Of the machine, in which that session began; empty where the system tells none.
    """

    session: int = 0
    reports: int = 0
    assignment: int = 0
    command: int = 0
    metadata: dict[str, int] = {}
    running: bool = False
    boot: str = ""
    format: int = FORMAT


class ModelRecord(msgspec.Struct, frozen=True):
    """One model's update state."""

    state: State
    format: int = FORMAT


_R = TypeVar("_R", DeviceRecord, ModelRecord)


class Journal:
    """Durable state of the agent, every write of it atomic. Threads may use it at once.

    Args:
        disk: Where it is kept.
        first_number: Session and report numbers of a new journal begin above it; for a device whose disk forgets.

    Attributes:
        damage: What could not be read since this journal was opened, and what serves instead; for the event log.
        ended: How the session before ended: ``order``, ``crash`` (the process died, the machine stayed up) or ``cut``.

    Raises:
        DataError: it was written by another version of the agent.
    """

    def __init__(self, disk: Disk, *, first_number: int = 0) -> None:
        self._disk = disk
        self._lock = threading.RLock()
        self.damage: list[str] = []
        self.ended = "order"
        found = self._read(_DEVICE, DeviceRecord)
        self._record = found or DeviceRecord(session=first_number, reports=first_number)
        if found is None and self.damage:
            self._record = self._rebuilt(self._record)
        self._next_report = self._record.reports

    @property
    def record(self) -> DeviceRecord:
        """The device's numbers."""
        return self._record

    def begin_session(self, boot: str = "") -> int:
        """Note that the agent starts, and return the number of its session.

        Args:
            boot: What the system calls the present boot of the machine; empty where it does not.
        """
        self._keep_reserve()
        before = self._record
        self.ended = "order" if not before.running else "crash" if before.boot == boot else "cut"
        fresh = msgspec.structs.replace(before, session=before.session + 1, running=True, boot=boot)
        try:
            self._write(fresh)
        except DiskError as error:
            # What is installed must answer all the same; a number that comes twice confuses one late will at most.
            log.error("the session is not noted, installed models answer: %s", error)
            self._record = fresh
        return self._record.session

    def end_session(self) -> None:
        """Note that the agent ends in order."""
        try:
            self._change(running=False)
        except DiskError as error:
            log.warning("the end of the session is not noted: %s", error)

    def next_report(self) -> int:
        """A number that is higher than that of every report before, also before a power cut. Raises DiskError."""
        with self._lock:
            if self._next_report >= self._record.reports:
                self._change(reports=self._record.reports + REPORTS_AT_ONCE)
            self._next_report += 1
            return self._next_report

    def accept_assignment(self, version: int) -> None:
        """Remember that an assignment was accepted."""
        with self._lock:
            if version > self._record.assignment:
                self._change(assignment=version)

    def accept_command(self, number: int) -> None:
        """Remember that a command was accepted, before it runs."""
        with self._lock:
            if number > self._record.command:
                self._change(command=number)

    def note_metadata(self, versions: Mapping[str, int]) -> None:
        """Remember the metadata versions that are now trusted."""
        with self._lock:
            if dict(versions) != self._record.metadata:
                self._change(metadata=dict(versions))

    def models(self) -> dict[str, State]:
        """Every model's state, by name."""
        files = {*self._disk.list(_MODELS), *self._disk.list(_copy(_MODELS))}
        found: dict[str, State] = {}
        for name in sorted(entry.removesuffix(_SUFFIX) for entry in files if entry.endswith(_SUFFIX)):
            record = self._read(f"{_MODELS}/{name}{_SUFFIX}", ModelRecord)
            found[name] = record.state if record else rebuilt_state(self._disk, name)
        return found

    def save(self, model: str, state: State) -> None:
        """Remember a model's state. Raises DiskError."""
        with self._lock:
            self._put(f"{_MODELS}/{model}{_SUFFIX}", msgspec.json.encode(ModelRecord(state)))
            if state.name is S.IDLE:
                self._keep_reserve()

    def _put(self, name: str, data: bytes) -> None:
        """Write; on a full disk the reserve is given up for it, so that a failure can be told, and the agent start."""
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
            log.warning("no copy of %s can be kept: %s", name, error)
            self._disk.remove(_copy(name))  # an old one would be worse than none

    def _keep_reserve(self) -> None:
        if not self._disk.exists(_RESERVE):
            try:
                self._disk.write(_RESERVE, os.urandom(RESERVE_BYTES))  # what no file system packs away
            except DiskError as error:
                log.warning("no space can be kept for the journal: %s", error)

    def _change(self, **changes: object) -> None:
        with self._lock:
            self._write(msgspec.structs.replace(self._record, **changes))

    def _write(self, record: DeviceRecord) -> None:
        self._put(_DEVICE, msgspec.json.encode(record))
        self._record = record

    def _rebuilt(self, record: DeviceRecord) -> DeviceRecord:
        """What the models' records still say of the device's numbers, so that little can be replayed."""
        states = self.models().values()
        asked = [one.assignment for state in states for one in (state.deployment, state.offered, state.failed) if one]
        return msgspec.structs.replace(record, assignment=max(asked, default=0))

    def _read(self, name: str, kind: type[_R]) -> _R | None:
        """The record, from its copy where the file itself is damaged; None where neither is there or whole."""
        for place in (name, _copy(name)):
            try:
                record = msgspec.json.decode(_unsealed(self._disk.read(place)), type=kind)
            except FileNotFoundError:
                continue
            except (msgspec.MsgspecError, DataError, DiskError, UnicodeDecodeError, RecursionError) as error:
                fault = f"{self._disk.path(place)} cannot be read: {error}"
                if fault not in self.damage:
                    log.error("the journal's %s", fault)
                    self.damage.append(fault)
                continue
            if record.format != FORMAT:
                raise DataError(
                    f"the journal's {self._disk.path(place)} has format {record.format}, this agent reads {FORMAT}",
                    advice="It was written by another version of edgekit-agent; install that one.",
                )
            return record
        return None


def _copy(name: str) -> str:
    """Disk name of the copy of a journal file or folder."""
    folder, _, rest = name.partition("/")
    return f"{folder}/{_COPIES}/{rest}"


def _unsealed(raw: bytes) -> bytes:
    """The record before its digest; one without (of an older agent) is taken as it is. Raises DataError."""
    data, newline, digest = raw.partition(b"\n")
    if newline and hashlib.sha256(data).hexdigest().encode() != digest:
        raise DataError("its bytes are not those that were written")
    return data
