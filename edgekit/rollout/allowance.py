"""How many devices may get something now: a rate in devices an hour, for rollouts and standing assignments. Pure."""

from __future__ import annotations

import msgspec

MIN_PER_HOUR, MAX_PER_HOUR = 0.01, 1e6
MAX_RAMP = 100.0
BATCH_SECONDS = 10.0  # a rollout gives devices of this time together: each look reads all of its devices
LONGEST_AHEAD_SECONDS = 3600.0  # a later time is that of a clock that was ahead; a rate does not wait for it


class Allowance(msgspec.Struct, frozen=True):
    """A token bucket.

    Attributes:
        per_hour: The rate; 0 for no limit. At most the devices of six minutes, and at least one, are given at once.
        tokens: Devices that may get it at `counted`.
        counted: Wall clock seconds.
    """

    per_hour: float
    tokens: float
    counted: float

    @classmethod
    def start(cls, per_hour: float) -> Allowance:
        """A full bucket."""
        return cls(per_hour, _most(per_hour), 0.0)

    @property
    def whole(self) -> bool:
        """True if one more device may get it."""
        return self.count(1) == 1

    def count(self, wanted: int) -> int:
        """How many of `wanted` devices may get it now."""
        return min(wanted, int(self.tokens + 1e-9)) if self.per_hour else wanted

    def at(self, now: float) -> Allowance:
        """The bucket at `now`; a clock that was set back adds nothing."""
        grown = self.tokens + max(0.0, now - self.counted) * self.per_hour / 3600
        return Allowance(self.per_hour, min(_most(self.per_hour), grown), now)

    def is_ahead(self, now: float) -> bool:
        """True where a clock that was ahead has counted last, so that the bucket must be counted anew."""
        return self.counted > now + LONGEST_AHEAD_SECONDS

    def taken(self, count: int = 1) -> Allowance:
        """The bucket after this number of devices got it."""
        return Allowance(self.per_hour, self.tokens - count if self.per_hour else self.tokens, self.counted)

    def ready_at(self, wanted: int) -> float:
        """When the next of `wanted` devices may get it, those of BATCH_SECONDS together; wall clock seconds."""
        batch = min(wanted, max(1, int(self.per_hour * BATCH_SECONDS / 3600)))
        return self.counted + max(0.0, batch - self.tokens) * 3600 / self.per_hour


def _most(per_hour: float) -> float:
    return max(1.0, per_hour / 10)


def wave_rate(per_hour: float, ramp: float, wave: int) -> float:
    """The rate of a wave in devices an hour: that of the wave before it times `ramp`. `wave` counts from 0."""
    return min(per_hour * ramp ** min(wave, 100), 1e9)
