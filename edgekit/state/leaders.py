"""Tables of the controllers: which one leads, in which term, and when each was seen last.

A term is a number that rises with each leader. The leader's writing transactions begin with `check_term`, which shares
a lock on the term's row. A new leader waits for such transactions before it raises the term, so that no write of the
leader before comes later.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from edgekit.errors import UnavailableError
from edgekit.state._sql import FleetTable, put
from edgekit.state.tables import controllers, leaders

LOCK_SECONDS = 10  # a new leader waits so long for transactions of the leader before, and then tries again
SILENT_SECONDS = 30.0  # a controller that was not seen for this long has ended, or does not reach the database
FORGET_SECONDS = 86_400.0


class ControllerView(msgspec.Struct, frozen=True):
    """One controller of a fleet.

    Attributes:
        name: Host and a random part.
        leads: True if it is the leader, as far as the database knows.
        running: True if it was seen lately.
        since: Wall clock seconds of its start, by its own clock.
        seen: Wall clock seconds at which it wrote last.
        leads_since: Wall clock seconds at which it began to lead; 0 if it does not lead.
        term: Its term as leader; 0 if it does not lead.
    """

    name: str
    leads: bool
    running: bool
    since: float
    seen: float
    leads_since: float = 0.0
    term: int = 0

    @property
    def role(self) -> str:
        """One of leads, stands by, and silent, for people."""
        return ("leads" if self.leads else "stands by") if self.running else "silent"


class LeaderTable(FleetTable):
    """The controllers of one fleet."""

    def begin_term(self, name: str, now: float) -> int:
        """Make a controller, which holds the lock of the leader, the leader of a new term.

        Args:
            name: The controller.
            now: Wall clock seconds.

        Returns:
            The term.

        Raises:
            UnavailableError: the database did not answer, or a transaction of the leader before has not ended.
        """
        mine = leaders.c.fleet == self._fleet
        with self._writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
            values = {"term": leaders.c.term + 1, "controller": name, "since": now}
            if not connection.execute(leaders.update().where(mine).values(**values)).rowcount:
                connection.execute(leaders.insert().values(fleet=self._fleet, term=1, controller=name, since=now))
            return int(connection.execute(sa.select(leaders.c.term).where(mine)).scalar_one())

    def seen(self, name: str, since: float, now: float) -> None:
        """Note that a controller runs, and forget those that ended long ago.

        Args:
            name: The controller.
            since: Wall clock seconds of its start.
            now: Wall clock seconds.
        """
        old = sa.and_(controllers.c.fleet == self._fleet, controllers.c.seen < now - FORGET_SECONDS)
        with self._writing() as connection:
            put(connection, controllers, {"fleet": self._fleet, "name": name}, {"since": since, "seen": now})
            connection.execute(controllers.delete().where(old))

    def left(self, name: str) -> None:
        """Remove a controller that stops."""
        mine = sa.and_(controllers.c.fleet == self._fleet, controllers.c.name == name)
        with self._writing() as connection:
            connection.execute(controllers.delete().where(mine))

    def all(self, now: float) -> list[ControllerView]:
        """The controllers of the fleet, the leader first; `now` is wall clock seconds."""
        is_leader = sa.and_(leaders.c.fleet == controllers.c.fleet, leaders.c.controller == controllers.c.name)
        query = (
            sa.select(controllers, leaders.c.term, leaders.c.since.label("leads_since"))
            .outerjoin(leaders, is_leader)
            .where(controllers.c.fleet == self._fleet)
            .order_by(controllers.c.name)
        )
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        found = [
            ControllerView(
                name=row["name"],
                leads=row["term"] is not None,
                running=now - row["seen"] < SILENT_SECONDS,
                since=row["since"],
                seen=row["seen"],
                leads_since=row["leads_since"] or 0.0,
                term=row["term"] or 0,
            )
            for row in rows
        ]
        return sorted(found, key=lambda one: not one.leads)


def check_term(connection: sa.Connection, fleet: str, term: int) -> None:
    """Check inside a transaction that `term` is still the term of the leader, and stays so until it ends.

    Raises:
        UnavailableError: another controller leads.
    """
    query = sa.select(leaders.c.term, leaders.c.controller).where(leaders.c.fleet == fleet)
    row = connection.execute(query.with_for_update(read=True)).first()
    if row is None or row.term != term:
        name = row.controller if row else "no controller"
        raise UnavailableError(f"{name} leads fleet {fleet!r} now; this controller writes nothing more as leader")
