"""A disk in memory with a power cut, a fault or no free space at any write.

    disk = FaultyDisk(cut_at=7)      # the 7th change and all later ones raise PowerCut
    survivor = disk.after_power_cut()

Unsynced data is lost: a file written in place has the bytes of its last sync, or zeros if it was never synced.
"""

from __future__ import annotations

from collections.abc import Callable

from edgekit.errors import SpaceError
from edgekit.storage.disk import MemoryDisk


class PowerCut(BaseException):
    """The device has no power. It is no Exception, because code of the device must not handle it."""


class FaultyDisk(MemoryDisk):
    """A MemoryDisk with a copy of its durable data, and faults at chosen changes.

    Attributes:
        changes: Number of changes so far.
        cut_at: Number of the change before which the power fails; 0 for never.
        fault: Called with (change number, method, name) before each change; raises an error to make the change fail.
    """

    def __init__(self, *, cut_at: int = 0, capacity: int = 1 << 40, fault: Callable | None = None) -> None:
        super().__init__(capacity)
        self.durable: dict[str, bytes] = {}
        self.changes = 0
        self.cut_at = cut_at
        self.fault = fault

    def after_power_cut(self, *, cut_at: int = 0) -> FaultyDisk:
        """The disk that the device finds after the power cut: the durable data."""
        disk = FaultyDisk(cut_at=cut_at, capacity=self.capacity)
        disk.files, disk.durable, disk.folders = dict(self.durable), dict(self.durable), set(self.folders)
        return disk

    @property
    def off(self) -> bool:
        """True after the power cut."""
        return bool(self.cut_at) and self.changes >= self.cut_at

    def _change(self, method: str, name: str) -> None:
        self.changes += 1
        if self.off:
            raise PowerCut(f"{method} {name}")
        if self.fault is not None:
            self.fault(self.changes, method, name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file; atomic and durable."""
        self._change("write", name)
        super().write(name, data)
        self.durable[name] = bytes(data)

    def preallocate(self, name: str, size: int) -> None:
        """Allocate a file: the size is durable, the bytes are zeros."""
        self._change("preallocate", name)
        super().preallocate(name, size)
        self.durable[name] = self.durable.get(name, b"")[:size].ljust(size, b"\0")

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """Write in place; not durable before `sync`."""
        self._change("write_at", name)
        super().write_at(name, offset, data)

    def sync(self, name: str) -> None:
        """Make the content of a file durable."""
        self._change("sync", name)
        super().sync(name)
        if name in self.files:
            self.durable[name] = bytes(self.files[name])

    def rename(self, source: str, target: str) -> None:
        """Rename a file: the name is durable, the durable bytes are those of the last sync."""
        self._change("rename", source)
        super().rename(source, target)
        self.durable[target] = self.durable.pop(source, b"")

    def remove(self, name: str) -> None:
        """Remove a file or folder. Each file of a folder is one change, so the power can fail between two files."""
        inside = sorted(entry for entry in self.files if entry == name or entry.startswith(f"{name}/"))
        for entry in inside:
            self._change("remove", entry)
            del self.files[entry]
            self.durable.pop(entry, None)
        super().remove(name)


def full(change: int, method: str, name: str) -> None:
    """A fault: no space for new data."""
    if method in ("write", "preallocate", "write_at"):
        raise SpaceError(f"no space left for {name}")
