"""The health service: judges each hour of the devices' telemetry, and deletes old roll-ups."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edgekit.protocols import Clock

if TYPE_CHECKING:
    from edgekit.state import FleetState

log = logging.getLogger(__name__)

JUDGE_SECONDS = 30.0  # between two looks for hours that are over
FORGET_SECONDS = 3600.0


class HealthService:
    """Judges telemetry.

    Args:
        state, clock: As Controller.
        telemetry_days: How long roll-ups are kept.
    """

    def __init__(self, *, state: FleetState, clock: Clock, telemetry_days: int) -> None:
        self._state, self._clock, self._days = state, clock, telemetry_days
        self._judged = self._forgot = float("-inf")

    async def tick(self) -> None:
        """Do what is due.

        Raises:
            UnavailableError: the database did not answer; the next tick repeats the work.
        """
        now = self._clock.monotonic()
        if now - self._judged >= JUDGE_SECONDS:
            more = await asyncio.to_thread(self._state.telemetry.judge, self._clock.wall())
            self._judged = now if not more else float("-inf")
        if now - self._forgot >= FORGET_SECONDS:
            gone = await asyncio.to_thread(self._state.telemetry.forget, self._clock.wall(), self._days)
            self._forgot = now
            log.info("%d roll-ups of telemetry older than %d days were deleted", gone, self._days)
