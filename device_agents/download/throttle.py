"""How much a device may download, and when: a rate, and hours in which nothing is fetched. Rules only; no clock."""

from __future__ import annotations

import re

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class QuietHours(msgspec.Struct, frozen=True):
    """From minute `first` of the day up to minute `last`, which may be on the next day."""

    first: int
    last: int

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.first, self.last))

    def __contains__(self, minute: int) -> bool:
        if self.first <= self.last:
            return self.first <= minute < self.last
        return minute >= self.first or minute < self.last


def parse_quiet_hours(text: str) -> QuietHours | None:
    """``22:00-06:30`` as hours; None for an empty text.

    Raises:
        ValueError: it is of another form, or begins when it ends.
    """
    if not text:
        return None
    found = _HOURS.fullmatch(text)
    if found is None:
        raise ValueError(f"quiet hours are {text!r}, expected HH:MM-HH:MM, for example 08:00-18:30")
    first_hour, first_minute, last_hour, last_minute = (int(part) for part in found.groups())
    hours = QuietHours(first_hour * 60 + first_minute, last_hour * 60 + last_minute)
    if hours.first == hours.last:
        raise ValueError(f"quiet hours {text!r} begin when they end; to stop downloads pause the rollout")
    return hours


class Bucket(msgspec.Struct, frozen=True):
    """A rate with a burst: holds what one second brings, and one block at least.

    Attributes:
        rate: Bytes per second; 0 for no limit.
        level: Bytes that may be asked for at `at`; below zero they are owed.
        at: Monotonic seconds.
    """

    rate: int
    level: float
    at: float

    @classmethod
    def full(cls, rate: int, now: float) -> Bucket:
        """A bucket that has rested."""
        return cls(rate, float(max(rate, BLOCK_BYTES)), now)

    def blocks(self, now: float, wanted: int) -> int:
        """How many of `wanted` blocks may be asked for now."""
        return wanted if not self.rate else max(0, min(wanted, int(self._level(now) // BLOCK_BYTES)))

    def take(self, now: float, blocks: int) -> Bucket:
        """After so many blocks were asked for."""
        return Bucket(self.rate, self._level(now) - blocks * BLOCK_BYTES, now) if self.rate else self

    def wait_seconds(self, now: float) -> float:
        """How long until one block may be asked for."""
        return max(0.0, (BLOCK_BYTES - self._level(now)) / self.rate) if self.rate else 0.0

    def _level(self, now: float) -> float:
        return min(float(max(self.rate, BLOCK_BYTES)), self.level + (now - self.at) * self.rate)
