"""Alarms of devices: those of drift, which devices raise, and those of telemetry, which the controller raises.

One rule holds for both: an operator may end an open alarm, and it is then held until what it found has ended by itself.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from edgekit.errors import NotFoundError
from edgekit.state._sql import FleetTable
from edgekit.state.audit import record
from edgekit.state.tables import alarms

MAX_CLOSED_ALARMS = 200  # that are kept for each device
MAX_REASON = 500  # characters


class Alarm(msgspec.Struct, frozen=True):
    """One alarm.

    Attributes:
        device: Name of the device.
        model: Name of the model; ``agent`` for the device itself.
        kind: As `Finding.kind`, or ``drift.`` and its subject.
        since, seen: Begin of the first and of the last hour that was judged so, or when the device said so; wall clock
            seconds.
        ended: Begin of the hour that was judged well again, or when the device or an operator ended it; None while it
            is open.
        message: What was found last.
        ended_by: The operator who ended it; empty where it ended by itself.
        reason: Why, as the operator wrote it.
    """

    device: str
    model: str
    kind: str
    since: float
    seen: float
    ended: float | None
    message: str
    ended_by: str = ""
    reason: str = ""


class AlarmTable(FleetTable):
    """The alarms of one fleet."""

    def all(self, device: str | None = None, *, ended: bool = False, limit: int = 500) -> list[Alarm]:
        """Alarms of all devices or of one, the newest first.

        Args:
            device: Name of one device; None for all.
            ended: Also those that have ended.
            limit: Number of alarms.
        """
        query = sa.select(alarms).where(alarms.c.fleet == self._fleet).order_by(alarms.c.id.desc()).limit(limit)
        if device is not None:
            query = query.where(alarms.c.device == device)
        if not ended:
            query = query.where(alarms.c.ended.is_(None))
        with self._reading() as connection:
            return [_alarm(row) for row in connection.execute(query).mappings()]

    def end(self, device: str, model: str, kind: str, reason: str, now: float) -> list[Alarm]:
        """End open alarms of a device, as an operator who has looked into them; returns them as they are then.

        An alarm that was ended so is not raised again for what goes on: only after an hour that was judged well, or
        after the device has said that the drift has ended.

        Args:
            device: Its name.
            model: Name of the model; empty for all.
            kind: As an alarm has it; empty for all.
            reason: Why they are ended; for people.
            now: Wall clock seconds.

        Raises:
            NotFoundError: there is no such open alarm.
        """
        found = sa.and_(alarms.c.fleet == self._fleet, alarms.c.device == device, alarms.c.ended.is_(None))
        for column, value in ((alarms.c.model, model), (alarms.c.kind, kind)):
            found = sa.and_(found, column == value) if value else found
        with self._writing() as connection:
            rows = connection.execute(sa.select(alarms.c.id).where(found).with_for_update()).scalars().all()
            if not rows:
                what = " ".join(part for part in (model, kind) if part)
                raise NotFoundError(
                    f"device {device!r} has no open alarm{f' for {what}' if what else ''}",
                    advice=f"See: edgekit alarm list --device {device}",
                )
            values = {"ended": now, "ended_by": self._author, "reason": reason, "held": True}
            connection.execute(alarms.update().where(alarms.c.id.in_(rows)).values(**values))
            query = sa.select(alarms).where(alarms.c.id.in_(rows)).order_by(alarms.c.kind, alarms.c.model)
            ended = [_alarm(row) for row in connection.execute(query).mappings()]
            after = {"model": model, "kinds": [one.kind for one in ended], "reason": reason}
            record(connection, self._fleet, self._author, "alarm.end", device, now=now, after=after)
        return ended

    def end_model(self, device: str, model: str, now: float) -> int:
        """End the open alarms of a model that a device does not have any more; returns how many."""
        mine = sa.and_(alarms.c.fleet == self._fleet, alarms.c.device == device, alarms.c.model == model)
        with self._writing() as connection:
            ended = connection.execute(alarms.update().where(mine, alarms.c.ended.is_(None)).values(ended=now)).rowcount
            release(connection, mine)
        return ended


def _alarm(row: sa.RowMapping) -> Alarm:
    return Alarm(**{name: row[name] for name in Alarm.__struct_fields__})


def keep_held(connection: sa.Connection, same: sa.ColumnElement[bool], **changes: object) -> bool:
    """Write into the alarm that an operator has ended while what it found goes on; False where there is none.

    Args:
        connection: An open transaction.
        same: Selects the alarms of one kind of one model of one device.
        changes: Columns to write.
    """
    held = sa.and_(same, alarms.c.held)
    return connection.execute(alarms.update().where(held).values(**changes)).rowcount > 0


def release(connection: sa.Connection, same: sa.ColumnElement[bool]) -> bool:
    """Let an alarm be raised again, because its finding has ended; False where none was held."""
    held = sa.and_(same, alarms.c.held)
    return connection.execute(alarms.update().where(held).values(held=False)).rowcount > 0


def forget_ended(connection: sa.Connection, fleet: str, device: str) -> None:
    """Delete the oldest ended alarms of a device above MAX_CLOSED_ALARMS."""
    mine = sa.and_(alarms.c.fleet == fleet, alarms.c.device == device, alarms.c.ended.is_not(None))
    kept = sa.select(alarms.c.id).where(mine).order_by(alarms.c.id.desc()).offset(MAX_CLOSED_ALARMS).limit(1)
    connection.execute(alarms.delete().where(mine, alarms.c.id <= kept.scalar_subquery()))
