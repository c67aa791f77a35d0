"""The pause of a whole fleet."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from edgekit.errors import RefusedError
from edgekit.state._sql import FleetTable, put, untrusted_text
from edgekit.state.audit import record
from edgekit.state.tables import fleet_pauses

MAX_REASON = 500


class FleetPause(msgspec.Struct, frozen=True):
    """Whether devices of the fleet begin changes.

    Attributes:
        paused: True while none does.
        reason: Why, for people.
        since: Wall clock seconds of the last change; 0 if there was none.
    """

    paused: bool = False
    reason: str = ""
    since: float = 0.0


class PauseTable(FleetTable):
    """The pause of one fleet."""

    def get(self) -> FleetPause:
        """Whether the fleet is paused."""
        query = sa.select(fleet_pauses).where(fleet_pauses.c.fleet == self._fleet)
        with self._reading() as connection:
            return _read(connection.execute(query).first())

    def set(self, paused: bool, now: float, *, reason: str = "") -> FleetPause:
        """Pause or resume the fleet; a controller then tells the devices.

        Args:
            paused: True to pause.
            now: Wall clock seconds.
            reason: Why, for people.

        Raises:
            RefusedError: it is paused, or not paused, already.
        """
        after = FleetPause(paused, untrusted_text(reason, MAX_REASON), now)
        query = sa.select(fleet_pauses).where(fleet_pauses.c.fleet == self._fleet).with_for_update()
        with self._writing() as connection:
            before = _read(connection.execute(query).first())
            if before.paused == paused:
                raise RefusedError(f"fleet {self._fleet!r} is {'already paused' if paused else 'not paused'}")
            put(connection, fleet_pauses, {"fleet": self._fleet}, msgspec.structs.asdict(after))
            word = "fleet.pause" if paused else "fleet.resume"
            record(connection, self._fleet, self._author, word, self._fleet, now=now, before=before, after=after)
        return after


def _read(row: sa.Row[tuple[object, ...]] | None) -> FleetPause:
    return FleetPause(row.paused, row.reason, row.since) if row is not None else FleetPause()
