"""Standing assignments as values."""

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
