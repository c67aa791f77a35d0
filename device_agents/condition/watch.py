"""Follows the device's condition, and asks for a report when it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from device_agents.condition.rules import Condition, facts_of, steadied, worth_a_report
from device_agents.threads import in_thread
from edgekit.sketches.signals import AGENT, EXPONENTS, TEMPERATURE, Signal
from edgekit.sketches.sketch import Recorder, Sketch

SURVEY_SECONDS = 20.0


class ConditionWatch:
    """Holds the condition that reports contain.

    Args:
        read: Reads the condition; it blocks for some milliseconds.
        changed: Asks for a report.
    """

    def __init__(self, read: Callable[[], Condition], changed: Callable[[], None]) -> None:
        self._read, self._changed = read, changed
        self._reported = Condition()
        self._temperatures = Recorder(EXPONENTS[TEMPERATURE])

    @property
    def facts(self) -> dict[str, Any]:
        """The changing facts, for a report."""
        return facts_of(self._reported)

    def take_sketches(self) -> dict[str, Sketch]:
        """The temperatures since the last call, for telemetry."""
        sketch = self._temperatures.sketch()
        self._temperatures = Recorder(EXPONENTS[TEMPERATURE])
        return {Signal(AGENT, "", TEMPERATURE).key: sketch} if sketch else {}

    async def run(self, survey_seconds: float = SURVEY_SECONDS) -> None:
        """Read the condition at an interval, until cancelled."""
        while True:
            measured = await in_thread(self._read)
            if measured.temperature_celsius is not None:
                self._temperatures.add(measured.temperature_celsius)
            steady = steadied(self._reported, measured)
            changed = worth_a_report(self._reported, steady)
            self._reported = steady
            if changed:
                self._changed()
            await asyncio.sleep(survey_seconds)
