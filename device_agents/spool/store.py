"""The folder of the spool: sealed samples, one file each, within a capacity."""

from __future__ import annotations

import contextlib
import threading

import msgspec

from device_agents.spool.rules import Entry, is_id, make_room, new_id, upload_order
from edgekit.errors import DataError, DiskError, SpaceError
from edgekit.mqtt.sample_reasons import SampleReason
from edgekit.protocols import Disk

FOLDER = "spool"
NEW = f"{FOLDER}/new"  # written first, then renamed; a power cut leaves at most this one behind
FREE_BYTES = 32 * 1024**2  # always left for updates, journal and logs


class Spooled(msgspec.Struct, frozen=True):
    """The content of one file.

    Attributes:
        model, digest: Model and digest of the bundle that answered; the operator's side shows them.
        at: Wall clock seconds.
        sealed: The sample, sealed for the operator.
        format: Format number of the file.
    """

    model: str
    digest: str
    at: float
    sealed: bytes
    format: int = 1


def stored_entries(disk: Disk) -> list[Entry]:
    """The stored samples, by id. Raises DiskError."""
    return [Entry(name, disk.size(f"{FOLDER}/{name}")) for name in disk.list(FOLDER) if is_id(name)]


class Spool:
    """The stored samples. Every method may block, and may be called in any thread.

    Args:
        disk: The device's folder.
        capacity: Most bytes of all samples.

    Attributes:
        evicted: Samples that were given up for others, or for which there was no room.
    """

    def __init__(self, disk: Disk, capacity: int) -> None:
        self._disk, self._capacity = disk, capacity
        self._lock = threading.Lock()
        with contextlib.suppress(DiskError):  # a worn card is read-only, and its samples can still be sent
            disk.remove(NEW)  # a write that a power cut ended
        self._entries = {entry.id: entry for entry in stored_entries(disk)}
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """Bytes of all samples."""
        return sum(entry.size for entry in list(self._entries.values()))

    def next_id(self, reason: SampleReason, token: str) -> str:
        """The id for a new sample; `token` is 16 random hex digits."""
        return new_id(reason, list(self._entries.values()), token)

    def next(self) -> Entry | None:
        """The sample to send next; None where there is none."""
        return next(iter(upload_order(list(self._entries.values()))), None)

    def put(self, sample: str, content: Spooled) -> bool:
        """Store a sample durably. False where there is no room for it beside what is worth more.

        Raises:
            SpaceError: the disk has too little free space.
            DiskError: the disk failed; nothing is stored.
        """
        data = msgspec.msgpack.encode(content)
        with self._lock:
            new = Entry(sample, len(data))
            given_up = make_room(self._entries.values(), new, self._capacity)
            if given_up is None:
                self.evicted += 1
                return False
            free = self._disk.free_bytes() + sum(entry.size for entry in given_up)
            if free < len(data) + FREE_BYTES:
                raise SpaceError(
                    f"a sample of {len(data)} bytes is not kept: {free} bytes are free, and {FREE_BYTES} stay free",
                    advice="Free some space on the device, or set spool_mib lower.",
                )
            for entry in given_up:
                self._forget(entry.id)
                self.evicted += 1
            self._disk.write(NEW, data)
            self._disk.rename(NEW, f"{FOLDER}/{sample}")
            self._entries[sample] = new
            return True

    def read(self, sample: str) -> Spooled:
        """A stored sample.

        Raises:
            DataError: it was given up meanwhile, or its file is damaged.
            DiskError: the disk failed.
        """
        try:
            found = msgspec.msgpack.decode(self._disk.read(f"{FOLDER}/{sample}"), type=Spooled)
        except FileNotFoundError:
            raise DataError(f"sample {sample} is no longer in the spool") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"sample {sample} is damaged: {error}") from error
        if found.format != 1:
            raise DataError(f"sample {sample} has format {found.format}, this agent reads 1")
        return found

    def remove(self, sample: str) -> None:
        """Remove a sample; no error if it is not there. Raises DiskError."""
        with self._lock:
            self._forget(sample)

    def _forget(self, sample: str) -> None:
        self._disk.remove(f"{FOLDER}/{sample}")
        self._entries.pop(sample, None)
