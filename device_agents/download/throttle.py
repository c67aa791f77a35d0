"""Rules for the download rate and for the quiet hours of a device; no clock."""

from __future__ import annotations

import msgspec

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import UnavailableError
from edgekit.hours import Hours, parse_hours


class QuietHoursError(UnavailableError):
    """A deployment waits until the quiet hours are over."""

    waiting = "quiet-hours"


def parse_quiet_hours(text: str) -> Hours | None:
    """Parse ``22:00-06:30``; None for an empty text. Raises ValueError as `parse_hours`."""
    return parse_hours(text, "quiet hours", "pause the rollout to stop downloads")


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
