"""Follows the device's condition, and asks for a report when it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from device_agents.condition.rules import Condition, facts_of, steadied, worth_a_report
from device_agents.threads import in_thread

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

    @property
    def facts(self) -> dict[str, Any]:
        """The changing facts, for a report."""
        return facts_of(self._reported)

    async def run(self, survey_seconds: float = SURVEY_SECONDS) -> None:
        """Read the condition at an interval, until cancelled."""
        while True:
            steady = steadied(self._reported, await in_thread(self._read))
            changed = worth_a_report(self._reported, steady)
            self._reported = steady
            if changed:
                self._changed()
            await asyncio.sleep(survey_seconds)
