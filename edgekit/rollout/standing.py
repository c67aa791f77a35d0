"""Standing assignments as values, and the rate at which they are given. Pure rules."""

from __future__ import annotations

from typing import Any

import msgspec

from edgekit.rollout.cohort import Cohort
from edgekit.trust.assignment import Entry


class Standing(msgspec.Struct, frozen=True):
    """A standing assignment: the model that new devices of a cohort get.

    Attributes:
        id: Its number.
        model: Name of the model.
        version, channel: One of them: a fixed version, or the newest one of a channel.
        cohort: The devices that get it.
        entries: Assignment entries by target, as the registry had them last.
        per_hour: Devices that get it within an hour; 0 for no limit.
        tokens, counted: Devices that may get it at once, at the wall clock time `counted`.
        created: Wall clock seconds.
    """

    id: int
    model: str
    version: str
    channel: str
    cohort: Cohort
    entries: dict[str, Entry]
    per_hour: float
    tokens: float
    counted: float
    created: float

    @property
    def text(self) -> str:
        """For example ``digits 1.0.0`` or ``digits from channel stable``."""
        return f"{self.model} {self.version}" if self.version else f"{self.model} from channel {self.channel}"

    @property
    def summary(self) -> dict[str, Any]:
        """Its values for the audit log and ``--json``."""
        return {
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "channel": self.channel,
            "devices": self.cohort.text or "all",
            "per_hour": self.per_hour,
            "bundles": {target: entry.version for target, entry in sorted(self.entries.items())},
        }


class Allowance(msgspec.Struct, frozen=True):
    """A token bucket: how many devices may get something now.

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
        return cls(per_hour, max(1.0, per_hour / 10), 0.0)

    @property
    def whole(self) -> bool:
        """True if one more device may get it."""
        return not self.per_hour or self.tokens >= 1.0 - 1e-9

    def at(self, now: float) -> Allowance:
        """The bucket at `now`; a clock that was set back adds nothing."""
        grown = self.tokens + max(0.0, now - self.counted) * self.per_hour / 3600
        return Allowance(self.per_hour, min(max(1.0, self.per_hour / 10), grown), now)

    def taken(self) -> Allowance:
        """The bucket after one device got it."""
        return Allowance(self.per_hour, self.tokens - 1.0 if self.per_hour else self.tokens, self.counted)
