"""Rules for the download rate and for the quiet hours of a device; no clock."""

from __future__ import annotations

import re

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import UnavailableError

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class QuietHoursError(UnavailableError):
    """A deployment waits until the quiet hours are over."""

    waiting = "quiet-hours"


class QuietHours(msgspec.Struct, frozen=True):
    """A range of local time: from minute `first` of the day up to minute `last`, which may be on the next day."""

    first: int
    last: int

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.first, self.last))

    def __contains__(self, minute: int) -> bool:
        if self.first <= self.last:
            return self.first <= minute < self.last
        return minute >= self.first or minute < self.last


def parse_quiet_hours(text: str) -> QuietHours | None:
    """Parse ``22:00-06:30``; None for an empty text.

    Raises:
        ValueError: the text has another form, or the range is empty.
    """
    if not text:
        return None
    match = _HOURS.fullmatch(text)
    if match is None:
        raise ValueError(f"quiet hours are {text!r}, expected HH:MM-HH:MM, for example 08:00-18:30")
    first_hour, first_minute, last_hour, last_minute = (int(part) for part in match.groups())
    hours = QuietHours(first_hour * 60 + first_minute, last_hour * 60 + last_minute)
    if hours.first == hours.last:
        raise ValueError(f"quiet hours {text!r} begin and end at the same time; pause the rollout to stop downloads")
    return hours


class Bucket(msgspec.Struct, frozen=True):
    """Token bucket: limits the rate, with a burst of one second or one block, whichever is larger.

    Attributes:
        rate: Bytes per second; 0 for no limit.
        level: Bytes that may be requested at `at`; negative after a burst that was larger than the bucket.
        at: Monotonic seconds.
    """

    rate: int
    level: float
    at: float

    @classmethod
    def full(cls, rate: int, now: float) -> Bucket:
        """A full bucket."""
        return cls(rate, float(max(rate, BLOCK_BYTES)), now)

    def blocks(self, now: float, wanted: int) -> int:
        """How many of `wanted` blocks may be requested now."""
        return wanted if not self.rate else max(0, min(wanted, int(self._level(now) // BLOCK_BYTES)))

    def take(self, now: float, blocks: int) -> Bucket:
        """The bucket after `blocks` blocks were requested."""
        return Bucket(self.rate, self._level(now) - blocks * BLOCK_BYTES, now) if self.rate else self

    def wait_seconds(self, now: float) -> float:
        """Seconds until one block may be requested."""
        return max(0.0, (BLOCK_BYTES - self._level(now)) / self.rate) if self.rate else 0.0

    def _level(self, now: float) -> float:
        return min(float(max(self.rate, BLOCK_BYTES)), self.level + (now - self.at) * self.rate)
