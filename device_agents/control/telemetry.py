"""Counters since the last telemetry, from counters that only rise."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.mqtt.messages import Telemetry


class Window:
    """Turns rising totals into what was added since the last one that was sent.

    Args:
        device: Who says so.
        now: Monotonic seconds at the beginning.
    """

    def __init__(self, device: str, now: float) -> None:
        self._device = device
        self._since = now
        self._totals: dict[str, float] = {}

    def peek(self, totals: Mapping[str, float], *, now: float, at: float) -> Telemetry:
        """What was added; `now` is monotonic seconds, `at` wall clock. A total that fell has begun anew."""
        added = {name: total - self._before(name, total) for name, total in totals.items()}
        return Telemetry(self._device, at, now - self._since, added)

    def sent(self, totals: Mapping[str, float], *, now: float) -> None:
        """Begin the next window: what `peek` gave has been sent."""
        self._totals, self._since = dict(totals), now

    def _before(self, name: str, total: float) -> float:
        before = self._totals.get(name, 0.0)
        return before if total >= before else 0.0


def flatten(counters: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """``{"digits": {"local": 3}}`` as ``{"digits.local": 3.0}``."""
    return {f"{model}.{name}": float(value) for model, one in counters.items() for name, value in one.items()}
