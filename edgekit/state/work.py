"""One look at the database for what a round of the controller has to do: most rounds find nothing."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from edgekit.state._sql import FleetTable
from edgekit.state.fleet.commands import ASKED, SENT
from edgekit.state.fleet.hints import FleetPause
from edgekit.state.rollout.rollouts import ACTIVE
from edgekit.state.tables import assignments, commands, devices, fleet_pauses, reports, rollouts


class Work(msgspec.Struct, frozen=True):
    """The work of a round.

    Attributes:
        change: Time of the last enrollment or report, wall clock seconds; 0 if there was none. Times after now, of a
            clock that was ahead, do not count: they would hide every later change.
        rollouts: True where a rollout is running or paused.
        unsigned: True where an assignment must be signed.
        unpublished: True where the broker does not have a signed assignment.
        commands: True where a command waits for its device, or is late.
        pause: Whether the fleet is paused.
        devices: Number of enrolled devices.
    """

    change: float = 0.0
    rollouts: bool = False
    unsigned: bool = False
    unpublished: bool = False
    commands: bool = False
    pause: FleetPause = FleetPause()
    devices: int = 0


class WorkTable(FleetTable):
    """Looks for the work of one fleet."""

    def look(self, now: float, renew_before: float) -> Work:
        """The work at `now`; assignments that expire before `renew_before` are signed again. Wall clock seconds."""
        values = {"of_fleet": self._fleet, "now": now, "renew_before": renew_before}
        with self._reading() as connection:
            row = connection.execute(_LOOK, values).one()
        return Work(
            change=max(row.enrolled or 0.0, row.received or 0.0),
            rollouts=bool(row.rollouts),
            unsigned=bool(row.unsigned),
            unpublished=bool(row.unpublished),
            commands=bool(row.commands),
            pause=FleetPause(bool(row.paused), row.reason, row.since) if row.since is not None else FleetPause(),
            devices=row.devices,
        )


def _statement() -> sa.Select[tuple[object, ...]]:
    fleet: sa.BindParameter[str] = sa.bindparam("of_fleet")
    now: sa.BindParameter[float] = sa.bindparam("now")
    # The newest by the index on it; the largest of a fleet would read every report.
    received = (
        sa.select(reports.c.received)
        .where(reports.c.fleet == fleet, reports.c.received <= now)
        .order_by(reports.c.received.desc())
        .limit(1)
    )
    enrolled = sa.select(sa.func.max(devices.c.enrolled)).where(devices.c.fleet == fleet, devices.c.enrolled <= now)
    count = sa.select(sa.func.count()).select_from(devices).where(devices.c.fleet == fleet)
    active = sa.select(rollouts.c.id).where(rollouts.c.fleet == fleet, rollouts.c.state.in_(ACTIVE))
    mine = sa.select(assignments.c.device).where(assignments.c.fleet == fleet)
    due = sa.or_(assignments.c.payload.is_(None), assignments.c.expires < sa.bindparam("renew_before"))
    unpublished = mine.where(assignments.c.payload.is_not(None), assignments.c.published < assignments.c.version)
    waiting = sa.select(commands.c.id).where(commands.c.fleet == fleet, commands.c.state.in_((ASKED, SENT)))
    waits = sa.or_(commands.c.state == ASKED, commands.c.expires <= now)
    pause = fleet_pauses.c
    return sa.select(
        received.scalar_subquery().label("received"),
        enrolled.scalar_subquery().label("enrolled"),
        count.scalar_subquery().label("devices"),
        active.exists().label("rollouts"),
        mine.where(due).exists().label("unsigned"),
        unpublished.exists().label("unpublished"),
        waiting.where(waits).exists().label("commands"),
        *(
            sa.select(column).where(pause.fleet == fleet).scalar_subquery().label(column.name)
            for column in (pause.paused, pause.reason, pause.since)
        ),
    )


_LOOK = _statement()  # built at import: building a statement takes longer than running it
