"""What the agent must remember across a power cut: each model's update state, and the numbers that only rise."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from device_agents.deployment import S, State
from edgekit.errors import DataError, DiskError
from edgekit.protocols import Disk

FORMAT = 1
REPORTS_AT_ONCE = 1000
_DEVICE = "journal/device.json"
_MODELS = "journal/models"
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
    """

    session: int = 0
    reports: int = 0
    assignment: int = 0
    command: int = 0
    metadata: dict[str, int] = {}
    format: int = FORMAT


class ModelRecord(msgspec.Struct, frozen=True):
    """One model's update state."""

    state: State
    format: int = FORMAT


_R = TypeVar("_R", DeviceRecord, ModelRecord)


class Journal:
    """Durable state of the agent, every write of it atomic.

    Args:
        disk: Where it is kept.
        first_number: Session and report numbers of a new journal begin above it; for a device whose disk forgets.

    Raises:
        DataError: what is on the disk cannot be read; every fault is the disk's, since writes are atomic.
        DiskError: the disk failed.
    """

    def __init__(self, disk: Disk, *, first_number: int = 0) -> None:
        self._disk = disk
        fresh = DeviceRecord(session=first_number, reports=first_number)
        self._record = self._read(_DEVICE, DeviceRecord) if disk.exists(_DEVICE) else fresh
        self._next_report = self._record.reports

    @property
    def record(self) -> DeviceRecord:
        """The device's numbers."""
        return self._record

    def begin_session(self) -> int:
        """Note that the agent starts, and return the number of its session."""
        self._keep_reserve()
        fresh = msgspec.structs.replace(self._record, session=self._record.session + 1)
        try:
            self._write(fresh)
        except DiskError as error:
            # What is installed must answer all the same; a number that comes twice confuses one late will at most.
            log.error("the session is not noted, installed models answer: %s", error)
            self._record = fresh
        return self._record.session

    def next_report(self) -> int:
        """A number that is higher than that of every report before, also before a power cut. Raises DiskError."""
        self._next_report += 1
        if self._next_report > self._record.reports:
            try:
                self._change(reports=self._record.reports + REPORTS_AT_ONCE)
            except DiskError:
                self._next_report -= 1
                raise
        return self._next_report

    def accept_assignment(self, version: int) -> None:
        """Remember that an assignment was accepted."""
        if version > self._record.assignment:
            self._change(assignment=version)

    def accept_command(self, number: int) -> None:
        """Remember that a command was accepted, before it runs."""
        if number > self._record.command:
            self._change(command=number)

    def note_metadata(self, versions: Mapping[str, int]) -> None:
        """Remember the metadata versions that are now trusted."""
        if dict(versions) != self._record.metadata:
            self._change(metadata=dict(versions))

    def models(self) -> dict[str, State]:
        """Every model's state, by name."""
        names = [entry.removesuffix(_SUFFIX) for entry in self._disk.list(_MODELS) if entry.endswith(_SUFFIX)]
        return {name: self._read(f"{_MODELS}/{name}{_SUFFIX}", ModelRecord).state for name in names}

    def save(self, model: str, state: State) -> None:
        """Remember a model's state. Raises DiskError."""
        self._put(f"{_MODELS}/{model}{_SUFFIX}", msgspec.json.encode(ModelRecord(state)))
        if state.name is S.IDLE:
            self._keep_reserve()

    def _put(self, name: str, data: bytes) -> None:
        """Write; on a full disk the reserve is given up for it, so that a failure can be told, and the agent start."""
        try:
            self._disk.write(name, data)
        except DiskError:
            if not self._disk.exists(_RESERVE):
                raise
            self._disk.remove(_RESERVE)
            self._disk.write(name, data)

    def _keep_reserve(self) -> None:
        if not self._disk.exists(_RESERVE):
            try:
                self._disk.write(_RESERVE, os.urandom(RESERVE_BYTES))  # what no file system packs away
            except DiskError as error:
                log.warning("no space can be kept for the journal: %s", error)

    def _change(self, **changes: object) -> None:
        self._write(msgspec.structs.replace(self._record, **changes))

    def _write(self, record: DeviceRecord) -> None:
        self._put(_DEVICE, msgspec.json.encode(record))
        self._record = record

    def _read(self, name: str, kind: type[_R]) -> _R:
        try:
            record = msgspec.json.decode(self._disk.read(name), type=kind)
        except msgspec.MsgspecError as error:
            raise DataError(
                f"the journal's {self._disk.path(name)} cannot be read: {error}",
                advice="Its disk is failing. Move the state folder away; the agent then starts as a new device.",
            ) from error
        if record.format != FORMAT:
            raise DataError(
                f"the journal's {self._disk.path(name)} has format {record.format}, this agent reads {FORMAT}",
                advice="It was written by another version of edgekit-agent; install that one.",
            )
        return record
