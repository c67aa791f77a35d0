"""The service of standing assignments: keeps their bundles up to date, and gives them to devices that have nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, NotFoundError
from edgekit.protocols import Clock
from edgekit.registry import RegistryReader

if TYPE_CHECKING:
    from edgekit.rollout.standing import Standing
    from edgekit.state import FleetState
    from edgekit.trust.assignment import Entry

REFRESH_SECONDS = 60.0  # between two looks into the registry
APPLY_SECONDS = 10.0  # between two looks at the devices, where none has changed

log = logging.getLogger(__name__)


class StandingService:
    """Applies the standing assignments of a fleet.

    Args:
        state, reader, clock: As Controller.
    """

    def __init__(self, *, state: FleetState, reader: RegistryReader, clock: Clock) -> None:
        self._state, self._reader, self._clock = state, reader, clock
        self._refreshed = self._applied = float("-inf")
        self._change = -1.0

    def refresh_now(self) -> None:
        """Look into the registry in the next round."""
        self._refreshed = float("-inf")

    async def tick(self, change: float) -> None:
        """Do what is due.

        Args:
            change: Time of the fleet's latest change.

        Raises:
            UnavailableError: the database did not answer; the next tick repeats the work.
        """
        now = self._clock.monotonic()
        refresh = now - self._refreshed >= REFRESH_SECONDS
        if refresh or change != self._change or now - self._applied >= APPLY_SECONDS:
            await asyncio.to_thread(self._work, now, change, refresh)

    def _work(self, now: float, change: float, refresh: bool) -> None:
        self._change, self._applied = change, now
        found = self._state.standing.all()
        if refresh:
            self._refreshed = now
            if found:
                self._refresh(found)
        if not found:
            return
        for number, names in self._state.standing.apply(self._clock.wall()).items():
            log.info("standing assignment %d: given to %d devices", number, len(names))

    def _refresh(self, found: list[Standing]) -> None:
        """Look up the bundles of each standing assignment; what is no longer published stays as it was."""
        try:
            self._reader.refresh()
        except EdgekitError as error:
            log.warning("the registry cannot be read: %s", error)
            return
        for one in found:
            entries: dict[str, Entry] = dict(one.entries)
            for target in {row.target for row in self._reader.list(one.model)}:
                try:
                    release = self._reader.resolve(one.model, target, one.version or None, channel=one.channel)
                except NotFoundError:
                    continue
                entries[target] = release.entry
            if entries != one.entries:
                self._state.standing.set_entries(one.id, entries, self._clock.wall())
