"""Alarms of drift, which devices raise and end by events."""

from __future__ import annotations

import sqlalchemy as sa

from edgekit.mqtt.messages import Event
from edgekit.state._sql import FleetTable, untrusted_text
from edgekit.state.fleet.alarms import forget_ended, keep_held, release
from edgekit.state.fleet.event_writer import insert_event
from edgekit.state.tables import alarms

DRIFT, DRIFT_ENDED = "drift", "drift-ended"
PREFIX = "drift."
MAX_KIND, MAX_MODEL, MAX_MESSAGE = 160, 63, 500
MAX_OPEN = 64  # of one device


def is_drift() -> sa.ColumnElement[bool]:
    """True for alarms that devices raise and end themselves; hours of telemetry do not end them."""
    return alarms.c.kind.startswith(PREFIX, autoescape=True)


class DriftTable(FleetTable):
    """The alarms of drift of one fleet."""

    def save(self, event: Event, now: float) -> bool:
        """Store a device's event of drift and raise or end its alarm; False for one that is stored already.

        A device repeats, after a restart, what it found before. The same text again is no news, and no repetition is
        where an operator has ended the alarm.

        Args:
            event: Of kind DRIFT or DRIFT_ENDED; its detail names the ``subject``.
            now: Wall clock seconds.

        Raises:
            DataError: the event cannot be stored.
        """
        model, message = untrusted_text(event.model, MAX_MODEL), untrusted_text(event.message, MAX_MESSAGE)
        kind = untrusted_text(PREFIX + str(event.detail.get("subject", "")), MAX_KIND)
        same = sa.and_(self._of(event.device), alarms.c.model == model, alarms.c.kind == kind)
        with self._writing() as connection:
            if event.kind == DRIFT_ENDED:
                ended = alarms.update().where(same, alarms.c.ended.is_(None)).values(ended=now)
                count = connection.execute(ended).rowcount
                if not release(connection, same) and not count:
                    return False
            else:
                newest = sa.select(alarms.c.message).where(same).order_by(alarms.c.id.desc()).limit(1)
                if event.detail.get("again") and (
                    keep_held(connection, same, seen=now) or connection.execute(newest).scalar() == message
                ):
                    return False
                release(connection, same)
                self._raise(connection, event.device, model, kind, message, now)
            insert_event(connection, self._fleet, event, now)
        return True

    def _raise(self, connection: sa.Connection, device: str, model: str, kind: str, message: str, now: float) -> None:
        is_open = sa.and_(self._of(device), alarms.c.ended.is_(None))
        same = sa.and_(is_open, alarms.c.model == model, alarms.c.kind == kind)
        if connection.execute(alarms.update().where(same).values(seen=now, message=message)).rowcount:
            return
        count = sa.select(sa.func.count()).select_from(alarms).where(is_open)
        if (connection.execute(count).scalar() or 0) < MAX_OPEN:
            row = {"device": device, "model": model, "kind": kind, "since": now, "seen": now, "message": message}
            connection.execute(alarms.insert().values(fleet=self._fleet, **row))
            forget_ended(connection, self._fleet, device)

    def _of(self, device: str) -> sa.ColumnElement[bool]:
        return sa.and_(alarms.c.fleet == self._fleet, alarms.c.device == device)


def count_drifting(connection: sa.Connection, fleet: str) -> int:
    """Number of devices with an open alarm of drift."""
    is_open = sa.and_(alarms.c.fleet == fleet, alarms.c.ended.is_(None), is_drift())
    return connection.execute(sa.select(sa.func.count(sa.distinct(alarms.c.device))).where(is_open)).scalar() or 0
