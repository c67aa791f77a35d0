"""Compares the clock of this machine with those of the devices, before metadata is signed with its time."""

from __future__ import annotations

import statistics

import msgspec

EARLIEST = 1_704_067_200.0  # 2024-01-01: a device that shows an earlier time has no clock
MIN_DEVICES = 3
MAX_DEVICES = 1000
MAX_DIFFERENCE_SECONDS = 600.0
KEEP_SECONDS = 3600.0


class Difference(msgspec.Struct, frozen=True):
    """How the devices' clocks differ from this machine's.

    Attributes:
        seconds: Median of this machine's time minus the device's; positive where this machine is ahead.
        devices: Number of devices that were compared.
    """

    seconds: float
    devices: int

    @property
    def message(self) -> str:
        """One line for the log; empty where the clocks agree."""
        if self.devices < MIN_DEVICES or abs(self.seconds) <= MAX_DIFFERENCE_SECONDS:
            return ""
        word = "ahead of" if self.seconds > 0 else "behind"
        return (
            f"the clock of this machine is {abs(self.seconds) / 3600:.1f} h {word} the clocks of {self.devices} "
            "devices; check it: devices refuse metadata that is signed in the future, and certificates of a wrong time "
            "shut them out, so none are signed"
        )


class DeviceClocks:
    """The last difference of each device's clock, of reports that came in just now. Threads may share it."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # device -> (monotonic seconds of the report, difference)

    def note(self, device: str, shown: float, wall: float, now: float) -> None:
        """Note a report.

        Args:
            device: Name of the device.
            shown: Wall clock seconds that its report states.
            wall: Wall clock seconds of this machine.
            now: Monotonic seconds.
        """
        if EARLIEST <= shown <= 1e11 and (device in self._seen or len(self._seen) < MAX_DEVICES):
            self._seen[device] = (now, wall - shown)

    def difference(self, now: float) -> Difference:
        """The median over the devices that reported in the last hour; `now` is monotonic seconds."""
        recent = {name: seen for name, seen in list(self._seen.items()) if now - seen[0] <= KEEP_SECONDS}
        self._seen = recent
        found = [difference for _, difference in list(recent.values())]
        return Difference(statistics.median(found) if found else 0.0, len(found))

    def clear(self) -> None:
        """Forget everything, because the clock of this machine was set."""
        self._seen.clear()
