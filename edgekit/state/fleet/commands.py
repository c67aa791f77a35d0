"""Table of remote commands: an operator adds one, a controller sends it, the device answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edgekit.bounds import MAX_DATE, MAX_INTEGER, number_fault
from edgekit.errors import NotFoundError, RefusedError, SettingsError
from edgekit.mqtt.command_arguments import COMMAND_KINDS, parse_arguments
from edgekit.mqtt.messages import Result
from edgekit.state._sql import FleetTable, to_json, untrusted_json, untrusted_text
from edgekit.state.audit import record_all, take_turn
from edgekit.state.fleet.devices import read_report
from edgekit.state.fleet.event_writer import MAX_TEXT
from edgekit.state.tables import commands, devices, events, presence, reports

CHUNK = 500  # devices in one query
MAX_ENDED = 100  # ended commands that are kept for each device
ASKED, SENT, DONE, EXPIRED = "asked", "sent", "done", "expired"
REFUSED = "command-refused"
CLOCKS_SECONDS = 5.0  # the command has the time of the operator's machine, the event that of the controller
_NO_ARGUMENTS: Mapping[str, Any] = {}


class StoredCommand(msgspec.Struct, frozen=True):
    """One remote command.

    Attributes:
        device: Name of the device.
        number: Rises with each command for the device.
        kind, args: The command and its arguments.
        created, expires: Wall clock seconds.
        state: ``asked`` (not sent yet), ``sent``, ``done`` or ``expired``.
        ok, message, detail: The device's answer.
    """

    device: str
    number: int
    kind: str
    args: dict[str, Any]
    created: float
    expires: float
    state: str
    ok: bool | None = None
    message: str = ""
    detail: dict[str, Any] = {}


class CommandTable(FleetTable):
    """The commands of one fleet."""

    def add(
        self, device: str, kind: str, *, now: float, expires: float, args: Mapping[str, Any] = _NO_ARGUMENTS
    ) -> StoredCommand:
        """Store a command, which a controller will send.

        Args:
            device: Name of the device.
            kind: One of `edgekit.mqtt.command_arguments.COMMAND_KINDS`.
            now, expires: Wall clock seconds.
            args: Its arguments.

        Raises:
            SettingsError: a time is no finite number, or is too far ahead; the kind is not known.
            DataError: the arguments do not fit the kind.
            RefusedError: the device is in quarantine, and gets no commands.
        """
        return self.add_all(kind, {device: args}, now=now, expires=expires)[0]

    def add_all(
        self, kind: str, args: Mapping[str, Mapping[str, Any]], *, now: float, expires: float
    ) -> list[StoredCommand]:
        """As `add`, for several devices in one transaction: all of the commands are stored, or none.

        Args:
            kind, now, expires: As `add`.
            args: The arguments by device.
        """
        if fault := number_fault("expires", expires, 0, MAX_DATE):
            raise SettingsError(fault)
        if kind not in COMMAND_KINDS:
            raise SettingsError(f"{kind!r} is no command; commands are {', '.join(COMMAND_KINDS)}")
        for one in args.values():
            parse_arguments(kind, one)
        made: list[StoredCommand] = []
        with self._writing() as connection:
            take_turn(connection)  # two commands for one device have different numbers
            names = list(args)
            for chunk in (names[first : first + CHUNK] for first in range(0, len(names), CHUNK)):
                self._check_served(connection, chunk)
                numbers = self._next_numbers(connection, chunk, now)
                made += [_asked(name, numbers[name], kind, args[name], now, expires) for name in chunk]
            rows = [{**_columns(one), "fleet": self._fleet, "args": to_json(one.args), "detail": "{}"} for one in made]
            connection.execute(commands.insert(), rows)
            self._drop_oldest(connection)
            after = [
                {"kind": kind, "number": one.number, "expires": expires, **({"args": one.args} if one.args else {})}
                for one in made
            ]
            states = [(one.device, None, state) for one, state in zip(made, after, strict=True)]
            record_all(connection, self._fleet, self._author, "command.send", states, now=now)
        return made

    def get(self, device: str, number: int) -> StoredCommand:
        """Return a command that exists."""
        with self._reading() as connection:
            row = connection.execute(sa.select(commands).where(self._is(device, number))).mappings().one()
        return _read(row)

    def latest(
        self, device: str | None = None, *, kind: str | None = None, number: int | None = None, limit: int = 50
    ) -> list[StoredCommand]:
        """The newest commands of all devices, or of one device, or the one with this number; newest first.

        Raises:
            NotFoundError: there is none with this number.
        """
        query = sa.select(commands).where(commands.c.fleet == self._fleet).order_by(commands.c.id.desc()).limit(limit)
        wanted = {"device": device, "kind": kind, "number": number}
        for column, value in wanted.items():
            if value is not None:
                query = query.where(commands.c[column] == value)
        with self._reading() as connection:
            found = [_read(row) for row in connection.execute(query).mappings()]
        if number is not None and not found:
            raise NotFoundError(f"{device} has no command {number}", advice=f"See: edgekit device results {device}")
        return found

    def to_send(self, now: float) -> list[StoredCommand]:
        """Commands that were not sent and whose device is online; marks expired commands first."""
        due = sa.and_(commands.c.fleet == self._fleet, commands.c.state.in_((ASKED, SENT)), commands.c.expires <= now)
        query = (
            sa.select(commands)
            .join(presence, (presence.c.fleet == commands.c.fleet) & (presence.c.device == commands.c.device))
            .join(devices, (devices.c.fleet == commands.c.fleet) & (devices.c.name == commands.c.device))
            .where(commands.c.fleet == self._fleet, commands.c.state == ASKED, presence.c.online)
            .where(devices.c.quarantined.is_(None))
            .order_by(commands.c.id)
        )
        with self._reading() as connection:
            late = connection.execute(sa.select(commands.c.id).where(due)).first() is not None
            rows = connection.execute(query).mappings().all()
        if late:
            with self._writing() as connection:
                for row in connection.execute(sa.select(commands).where(due)).all():
                    values = {"state": EXPIRED, "message": self._why_unanswered(connection, row)}
                    connection.execute(commands.update().where(commands.c.id == row.id).values(**values))
        return [command for command in map(_read, rows) if command.expires > now]

    def _why_unanswered(self, connection: sa.Connection, row: sa.Row[Any]) -> str:
        """Why an expired command has no answer; a device that cannot verify a command tells it by an event."""
        if row.state == ASKED:
            return "it was not sent, because the device was not online"
        mine = (events.c.fleet == self._fleet) & (events.c.device == row.device) & (events.c.kind == REFUSED)
        refused = sa.select(events).where(mine, events.c.at >= row.created - CLOCKS_SECONDS)
        event = connection.execute(refused.order_by(events.c.id.desc()).limit(1)).first()
        said = f"the device refused a command: {event.error}: {event.message}" if event else "the device did not answer"
        return said[:MAX_TEXT]

    def sent_all(self, sent: Sequence[StoredCommand], failed: Sequence[tuple[StoredCommand, str]] = ()) -> None:
        """Record in one transaction that commands were sent; end those that cannot be sent, each with the reason."""
        if not sent and not failed:
            return
        is_unsent = sa.and_(
            commands.c.fleet == self._fleet,
            commands.c.device == sa.bindparam("of"),
            commands.c.number == sa.bindparam("numbered"),
            commands.c.state == ASKED,
        )
        with self._writing() as connection:
            if sent:
                keys = [{"of": one.device, "numbered": one.number} for one in sent]
                connection.execute(commands.update().where(is_unsent).values(state=SENT), keys)
            for one, fault in failed:
                values = {"state": DONE, "ok": False, "message": untrusted_text(fault, MAX_TEXT)}
                unsent = sa.and_(self._is(one.device, one.number), commands.c.state == ASKED)
                connection.execute(commands.update().where(unsent).values(**values))

    def save_result(self, result: Result) -> bool:
        """Store a device's answer, also a late one; False if no such command waits for one.

        Raises:
            DataError: the answer cannot be stored as JSON.
        """
        untrusted_json(result)
        if not 0 < result.number <= MAX_INTEGER:
            return False
        detail = to_json(result.detail)
        values = {
            "state": DONE,
            "ok": result.ok,
            "message": untrusted_text(result.message, MAX_TEXT),
            "detail": detail if len(detail) <= 32 * MAX_TEXT else "{}",
        }
        with self._writing() as connection:
            waiting = sa.and_(self._is(result.device, result.number), commands.c.state != DONE)
            return connection.execute(commands.update().where(waiting).values(**values)).rowcount == 1

    def check_served(self, device: str) -> None:
        """Raise RefusedError if a device is in quarantine, as `add` does."""
        with self._reading() as connection:
            self._check_served(connection, [device])

    def _check_served(self, connection: sa.Connection, names: Sequence[str]) -> None:
        held = sa.and_(devices.c.fleet == self._fleet, devices.c.name.in_(names), devices.c.quarantined.is_not(None))
        found = connection.execute(sa.select(devices.c.name).where(held).order_by(devices.c.name)).first()
        if found is not None:
            device = found.name
            raise RefusedError(
                f"device {device!r} is in quarantine, so it gets no commands",
                advice=f"See: edgekit device show {device}. End it with: edgekit device quarantine {device} --end",
            )

    def _next_numbers(self, connection: sa.Connection, names: Sequence[str], now: float) -> dict[str, int]:
        """The number of the next command of each device.

        It is above the highest that the device has accepted, in case the database was lost or restored. Older agents do
        not report that: for them numbers are at least the clock's seconds.
        """
        highest = sa.select(commands.c.device, sa.func.max(commands.c.number).label("number")).where(
            commands.c.fleet == self._fleet, commands.c.device.in_(names)
        )
        stored = {row.device: row.number for row in connection.execute(highest.group_by(commands.c.device))}
        query = sa.select(reports.c.device, reports.c.body).where(
            reports.c.fleet == self._fleet, reports.c.device.in_(names)
        )
        said = {row.device: read_report(row.body) for row in connection.execute(query)}
        found = {}
        for name in names:
            report = said.get(name)
            known = report is not None and report.command >= 0
            accepted = min(report.command, MAX_INTEGER - 1) if report is not None and known else int(now) - 1
            found[name] = max(stored.get(name, 0), accepted) + 1
        return found

    def _drop_oldest(self, connection: sa.Connection) -> None:
        """Remove all but the newest MAX_ENDED ended commands of each device."""
        ended = sa.and_(commands.c.fleet == self._fleet, commands.c.state.in_((DONE, EXPIRED)))
        order = sa.func.row_number().over(partition_by=commands.c.device, order_by=commands.c.number.desc())
        ranked = sa.select(commands.c.id, order.label("place")).where(ended).subquery()
        oldest = sa.select(ranked.c.id).where(ranked.c.place > MAX_ENDED)
        connection.execute(commands.delete().where(commands.c.id.in_(oldest)))

    def _is(self, device: str, number: int) -> sa.ColumnElement[bool]:
        return sa.and_(commands.c.fleet == self._fleet, commands.c.device == device, commands.c.number == number)


def _read(row: sa.RowMapping) -> StoredCommand:
    values = {field: row[field] for field in StoredCommand.__struct_fields__ if field not in ("args", "detail")}
    return StoredCommand(**values, args=msgspec.json.decode(row["args"]), detail=msgspec.json.decode(row["detail"]))


def _asked(device: str, number: int, kind: str, args: Mapping[str, Any], now: float, expires: float) -> StoredCommand:
    """A new command, with its arguments as they are read back."""
    return StoredCommand(device, number, kind, msgspec.json.decode(to_json(dict(args))), now, expires, ASKED)


def _columns(command: StoredCommand) -> dict[str, Any]:
    return {field: getattr(command, field) for field in StoredCommand.__struct_fields__}
