"""A disk in memory whose power can be cut at any write, and which can fail or be full at any write.

    disk = FaultyDisk(cut_at=7)      # the 7th change is not done; every later one raises PowerCut too
    survivor = disk.after_power_cut()

What was not synced is lost: a file written in place keeps the bytes of its last sync, zeros where there was none.
"""

from __future__ import annotations

from collections.abc import Callable

from edgekit.errors import DiskError
from edgekit.storage.disk import MemoryDisk


class PowerCut(BaseException):
    """The device has no power: not an Exception, since no code of it runs any more."""


class FaultyDisk(MemoryDisk):
    """MemoryDisk with a durable copy beside it, and faults by the number of the change.

    Attributes:
        changes: How many changes were asked for.
        cut_at: The change before which the power goes; 0 for never.
        fault: Called with (change number, method, name); raises what that change raises.
    """

    def __init__(self, *, cut_at: int = 0, capacity: int = 1 << 40, fault: Callable | None = None) -> None:
        super().__init__(capacity)
        self.durable: dict[str, bytes] = {}
        self.changes = 0
        self.cut_at = cut_at
        self.fault = fault

    def after_power_cut(self, *, cut_at: int = 0) -> FaultyDisk:
        """What the device finds when the power is back."""
        disk = FaultyDisk(cut_at=cut_at, capacity=self.capacity)
        disk.files, disk.durable, disk.folders = dict(self.durable), dict(self.durable), set(self.folders)
        return disk

    @property
    def off(self) -> bool:
        """True once the power has gone."""
        return bool(self.cut_at) and self.changes >= self.cut_at

    def _change(self, method: str, name: str) -> None:
        self.changes += 1
        if self.off:
            raise PowerCut(f"{method} {name}")
        if self.fault is not None:
            self.fault(self.changes, method, name)

    def write(self, name: str, data: bytes) -> None:
        """Atomic and durable."""
        self._change("write", name)
        super().write(name, data)
        self.durable[name] = bytes(data)

    def preallocate(self, name: str, size: int) -> None:
        """The size is durable, the bytes are zeros."""
        self._change("preallocate", name)
        super().preallocate(name, size)
        self.durable[name] = self.durable.get(name, b"")[:size].ljust(size, b"\0")

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """Not durable."""
        self._change("write_at", name)
        super().write_at(name, offset, data)

    def sync(self, name: str) -> None:
        """Durable from here on."""
        self._change("sync", name)
        super().sync(name)
        if name in self.files:
            self.durable[name] = self.files[name]

    def rename(self, source: str, target: str) -> None:
        """The name is durable, the bytes are what was synced."""
        self._change("rename", source)
        super().rename(source, target)
        self.durable[target] = self.durable.pop(source, b"")

    def remove(self, name: str) -> None:
        """A folder goes file by file, so that the power can go in the middle."""
        inside = sorted(entry for entry in self.files if entry == name or entry.startswith(f"{name}/"))
        for entry in inside:
            self._change("remove", entry)
            del self.files[entry]
            self.durable.pop(entry, None)
        super().remove(name)


def full(change: int, method: str, name: str) -> None:
    """A fault: no space for anything new."""
    if method in ("write", "preallocate", "write_at"):
        raise DiskError(f"no space left for {name}")
