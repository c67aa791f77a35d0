"""Stores what a device has learned against its certificates, so that a restart does not trust a refuted one again."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Annotated

import msgspec
from msgspec import Meta

from device_agents.inference.cascade.certified import Held
from edgekit.certificate.refutation import Explored
from edgekit.errors import DiskError
from edgekit.protocols import Disk

_log = logging.getLogger(__name__)

FILE_NAME = "certificates.json"
MOST_CERTIFICATES = 32  # the one that was stored longest ago is forgotten first
EACH = 25  # explored answers of a certificate between two writes; a loss of power forgets at most so many
_Count = Annotated[int, Meta(ge=0, le=2**53)]


class Record(msgspec.Struct, frozen=True):
    """The evidence on one certificate."""

    explored: _Count = 0
    differing: _Count = 0
    refuted: bool = False


class RefutationStore:
    """The evidence on the certificates of this device, by the certificate's id: its sha256.

    A certificate that comes back with a rollback finds its own evidence, and a new certificate has none.

    Args:
        disk: The device's folder; None where a restart forgets.
    """

    def __init__(self, disk: Disk | None) -> None:
        self._disk = disk
        self._records = self._read()
        self._unwritten = False
        self._writing = threading.Lock()

    def restore(self, held: Held) -> None:
        """Give a certificate the evidence that was stored."""
        record = self._records.get(held.certificate.id)
        if record is None or record.differing > record.explored:
            return
        held.explored, held.refuted = Explored(record.explored, record.differing), record.refuted
        if record.refuted:
            _log.warning("certificate %s was refuted before, and is not used", held.certificate.id[:12])

    async def keep(self, held: Held) -> None:
        """Store the evidence where it has changed enough: a refutation at once."""
        stored = self._records.get(held.certificate.id, Record())
        if held.refuted != stored.refuted or held.explored.count - stored.explored >= EACH:
            await self.store(held)

    async def store(self, held: Held) -> None:
        """Store the evidence. A failed write is logged, and tried again with the next one."""
        record = Record(held.explored.count, held.explored.differing, held.refuted)
        if record != self._records.get(held.certificate.id, Record()):
            self._records.pop(held.certificate.id, None)
            self._records[held.certificate.id] = record
            self._unwritten = True
            while len(self._records) > MOST_CERTIFICATES:
                del self._records[next(iter(self._records))]
        if self._unwritten and self._disk is not None:  # also where a write was cancelled, or is still under way
            await asyncio.to_thread(self._write)

    def _read(self) -> dict[str, Record]:
        try:
            if self._disk is not None and self._disk.exists(FILE_NAME):
                return msgspec.json.decode(self._disk.read(FILE_NAME), type=dict[str, Record])
        except (DiskError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.warning("%s cannot be read, certificates are tested anew: %s", FILE_NAME, error)
        return {}

    def _write(self) -> None:
        assert self._disk is not None
        with self._writing:  # the last writer has the newest values
            try:
                data = dict(self._records)
                self._disk.write(FILE_NAME, msgspec.json.encode(data))
                self._unwritten = self._records != data
            except DiskError as error:
                _log.warning("what refutes a certificate cannot be stored; a restart forgets it: %s", error)
