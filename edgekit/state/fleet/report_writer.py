"""Writes reports and the rows that filters select by, of many devices with few statements."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from edgekit.bounds import MAX_INTEGER
from edgekit.errors import DataError
from edgekit.identity.other_signer import AT_ONCE, OtherSigner
from edgekit.mqtt.messages import Event, Reported
from edgekit.state._sql import put_all, untrusted_json
from edgekit.state.fleet.attributes import Attribute, ChangedRows, report_attributes, traits
from edgekit.state.fleet.event_writer import MAX_STORED_EVENTS, insert_event, insert_missed
from edgekit.state.tables import assignments, presence, reports, telemetry_marks

log = logging.getLogger(__name__)

MAX_DEVICES = 10_000


class CheckedReport(NamedTuple):
    """A report that can be stored.

    Attributes:
        report: The report.
        live: The device sent it just now, so the device is online even if an older will arrived late.
        payload: The report as the device signed it; None where it is not known.
        body: The report as JSON.
        rows, digest: What filters select by, as `report_attributes` makes them.
    """

    report: Reported
    live: bool
    payload: bytes | None
    body: str
    rows: list[Attribute]
    digest: str


class Written(NamedTuple):
    """The last report that this process wrote for a device."""

    number: int
    digest: str
    rows: list[Attribute]
    assignment: int
    session: int


class Stored(NamedTuple):
    """Number of a device's report in the database, and the digest of its rows for filters; 0 and None without one."""

    number: int = 0
    indexed: str | None = None


def check_report(report: Reported, *, live: bool, payload: bytes | None) -> CheckedReport:
    """Check a report. Raises DataError if it cannot be stored as JSON, or its number is out of range."""
    if not 0 < report.number <= MAX_INTEGER:
        raise DataError(f"report number is {report.number}, expected 1 to {MAX_INTEGER}")
    return CheckedReport(report, live, payload, untrusted_json(report), *report_attributes(report))


class ReportWriter:
    """Stores reports of one fleet.

    It remembers what it wrote last for each device. That is still in the database exactly if the stored report has the
    same number; another controller may have written meanwhile.

    Args:
        fleet: Name of the fleet.
        max_events: Events to keep for each device.
    """

    def __init__(self, fleet: str, *, max_events: int = MAX_STORED_EVENTS) -> None:
        self._fleet, self._max_events = fleet, max_events
        self._written: dict[str, Written] = {}
        self._other = OtherSigner()

    def write(self, connection: sa.Connection, checked: Sequence[CheckedReport], now: float) -> list[int]:
        """Store reports inside the caller's transaction, but for those with a number that is not above the stored one.

        Args:
            connection: The transaction.
            checked: The reports in the order of their arrival.
            now: Wall clock seconds.

        Returns:
            For each report, 0 if it is stored; else the number of the report that is stored instead. A report that
            came just before a later one counts as stored.
        """
        before = self._stored(connection, [one.report.device for one in checked])
        last: dict[str, CheckedReport] = {}
        found = []
        for one in checked:
            name = one.report.device
            number = last[name].report.number if name in last else before[name].number
            fresh = one.report.number > number
            found.append(0 if fresh else number)
            if fresh:
                last[name] = one
        self._add_missed_events(
            connection, [one for one in last.values() if one.digest != before[one.report.device].indexed], now
        )
        put_all(
            connection, reports, ("fleet", "device"), [self._row(one, now) for one in last.values()], only_if=_newer
        )
        changed = ChangedRows(self._fleet)
        for name, one in last.items():
            self._compare(connection, one, before[name], changed, now)
        changed.write(connection)
        fresh_ones = [one for one, number in zip(checked, found, strict=True) if not number and one.live]
        self._put_presence(connection, fresh_ones, now)
        return found

    def _stored(self, connection: sa.Connection, names: list[str]) -> dict[str, Stored]:
        rows = connection.execute(_STORED, {"of_fleet": self._fleet, "names": names})
        return dict.fromkeys(names, Stored()) | {row.device: Stored(row.number, row.indexed) for row in rows}

    def _add_missed_events(self, connection: sa.Connection, changed: Sequence[CheckedReport], now: float) -> None:
        """Store the events that changed reports tell and that did not arrive, before the reports are stored."""
        if not changed:
            return
        names = [one.report.device for one in changed]
        bodies = {
            row.device: row.body for row in connection.execute(_BODIES, {"of_fleet": self._fleet, "names": names})
        }
        for one in changed:
            body = bodies.get(one.report.device)
            insert_missed(connection, self._fleet, one.report, body, now, max_events=self._max_events)

    def _row(self, one: CheckedReport, now: float) -> dict[str, Any]:
        return {
            "fleet": self._fleet,
            "device": one.report.device,
            "number": one.report.number,
            "received": now,
            "body": one.body,
            "indexed": one.digest,
            "payload": one.payload,
            "traits": traits(one.report),
        }

    def _compare(
        self, connection: sa.Connection, one: CheckedReport, before: Stored, changed: ChangedRows, now: float
    ) -> None:
        """Note the rows for filters that differ, and look after the version of the device's assignment."""
        name = one.report.device
        last = self._written.get(name)
        if last is not None and (last.number, last.digest) != before:
            last = None
        looked_at = one.report.assignment
        if (last is None or last.assignment != looked_at) and not self._raise_assignment(connection, one.report, now):
            looked_at = -1  # so that the next report is looked at
        if last is None or last.session != one.report.session:
            self._lower_mark(connection, one.report)
        if one.digest != before.indexed and last is not None:
            changed.update(name, last.rows, one.rows)
        elif one.digest != before.indexed:
            changed.replace(name, one.rows)
        if name not in self._written and len(self._written) >= MAX_DEVICES:
            self._written.clear()
        self._written[name] = Written(one.report.number, one.digest, one.rows, looked_at, one.report.session)

    def _raise_assignment(self, connection: sa.Connection, report: Reported, now: float) -> bool:
        """Give the device's assignment a version above the accepted one, in case the database was restored.

        False where that must wait, because another controller does the same from another database.
        """
        if not 0 < report.assignment < MAX_INTEGER:
            return True
        if not self._other.may_answer(report.device, now):
            return False
        accepted = {"of_fleet": self._fleet, "of_device": report.device, "accepted": report.assignment}
        if connection.execute(_RAISE, accepted).rowcount and (times := self._other.note(report.device, now)) > AT_ONCE:
            message = (
                f"it accepted version {report.assignment}, which was not signed here, {times} times by now: another "
                f"controller signs assignments of fleet {self._fleet!r} from another database. Stop one of the two"
            )
            log.error("%s: %s", report.device, message)
            event = Event(report.device, "assignment-contested", now, "", "OtherController", message)
            insert_event(connection, self._fleet, event, now, max_events=self._max_events)
        return True

    def _lower_mark(self, connection: sa.Connection, report: Reported) -> None:
        """Take telemetry of the signed session, also where that of a later one is stored: the disk was lost since."""
        if 0 < report.session <= MAX_INTEGER:
            signed = {"of_fleet": self._fleet, "of_device": report.device, "signed": report.session}
            connection.execute(_LOWER, signed)

    def _put_presence(self, connection: sa.Connection, live: Sequence[CheckedReport], now: float) -> None:
        """Note that the devices are online. The session is signed, so it also corrects a forged or a lost one."""
        key, defaults = ("fleet", "device"), {"telemetry": "{}"}
        seen = [{"fleet": self._fleet, "device": one.report.device, "seen": now, "online": True} for one in live]
        numbered = [0 < one.report.session <= MAX_INTEGER for one in live]
        named = zip(live, seen, numbered, strict=True)
        with_session = [{**row, "session": one.report.session} for one, row, has in named if has]
        without = [row for row, has in zip(seen, numbered, strict=True) if not has]
        put_all(connection, presence, key, with_session, on_insert=defaults)
        put_all(connection, presence, key, without, on_insert={**defaults, "session": 0})


def _newer(row: Any) -> sa.ColumnElement[bool]:
    newer: sa.ColumnElement[bool] = reports.c.number < row.number
    return newer


# Built at import: building a statement takes longer than running it.
_STORED = (
    sa.select(reports.c.device, reports.c.number, reports.c.indexed)
    .where(reports.c.fleet == sa.bindparam("of_fleet"))
    .where(reports.c.device.in_(sa.bindparam("names", expanding=True)))
    .order_by(reports.c.device)  # two controllers lock the rows in one order
    .with_for_update()
)
_BODIES = (
    sa.select(reports.c.device, reports.c.body)
    .where(reports.c.fleet == sa.bindparam("of_fleet"))
    .where(reports.c.device.in_(sa.bindparam("names", expanding=True)))
)
_LOWER = (
    telemetry_marks.update()
    .where(telemetry_marks.c.fleet == sa.bindparam("of_fleet"), telemetry_marks.c.device == sa.bindparam("of_device"))
    .where(telemetry_marks.c.session > sa.bindparam("signed"))
    .values(session=sa.bindparam("signed"), number=0)
)
_RAISE = (
    assignments.update()
    .where(assignments.c.fleet == sa.bindparam("of_fleet"), assignments.c.device == sa.bindparam("of_device"))
    .where(assignments.c.version < sa.bindparam("accepted"))
    .values(version=sa.bindparam("accepted") + 1, payload=None)
)
