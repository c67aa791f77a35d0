"""Writes reports and the rows that filters select by; a report that changes nothing costs one statement."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from edgekit.bounds import MAX_INTEGER
from edgekit.mqtt.messages import Reported
from edgekit.state._sql import put
from edgekit.state.attributes import (
    Attribute,
    indexed_digest,
    put_report,
    report_attributes,
    traits,
    update_report,
)
from edgekit.state.tables import assignments, reports

MAX_DEVICES = 10_000


class Written(NamedTuple):
    """The last write of this process for a device: numbers of its report, and the rows with their digest."""

    number: int
    digest: str
    rows: list[Attribute]
    assignment: int


class ReportWriter:
    """Stores reports of one fleet.

    It remembers what it wrote last for each device. That is still in the database exactly if the stored report has the
    same number, which the update itself checks; another controller may have written meanwhile.

    Args:
        fleet: Name of the fleet.
    """

    def __init__(self, fleet: str) -> None:
        self._fleet = fleet
        self._written: dict[str, Written] = {}

    def write(
        self, connection: sa.Connection, report: Reported, body: str, now: float, payload: bytes | None
    ) -> Written | None:
        """Store a report inside the caller's transaction, unless the stored one has the same or a higher number.

        Args:
            connection: The transaction.
            report: The report.
            body: The report as JSON.
            now: Wall clock seconds.
            payload: The report as the device signed it; None where it is not known.

        Returns:
            What was written, for `committed` after the transaction; None if nothing was.
        """
        rows, digest = report_attributes(report)
        last = self._written.get(report.device)
        if last is None or last.assignment != report.assignment:
            self._raise_assignment(connection, report)
        values = {"number": report.number, "received": now, "body": body, "indexed": digest, "payload": payload}
        values["traits"] = traits(report)
        if last is not None and last.number < report.number:
            same = sa.and_(
                reports.c.fleet == self._fleet, reports.c.device == report.device, reports.c.number == last.number
            )
            if connection.execute(reports.update().where(same).values(**values)).rowcount == 1:
                if digest != last.digest:
                    update_report(connection, self._fleet, report.device, last.rows, rows)
                return Written(report.number, digest, rows, report.assignment)
        before = indexed_digest(connection, self._fleet, report.device)
        key = {"fleet": self._fleet, "device": report.device}
        if not put(connection, reports, key, values, only_if=reports.c.number < report.number):
            return None
        if digest != before:
            put_report(connection, self._fleet, report.device, rows)
        return Written(report.number, digest, rows, report.assignment)

    def _raise_assignment(self, connection: sa.Connection, report: Reported) -> None:
        """Give the device's assignment a version above the accepted one, in case the database was restored."""
        if not 0 < report.assignment < MAX_INTEGER:
            return
        lower = sa.and_(
            assignments.c.fleet == self._fleet,
            assignments.c.device == report.device,
            assignments.c.version < report.assignment,
        )
        connection.execute(assignments.update().where(lower).values(version=report.assignment + 1, payload=None))

    def committed(self, device: str, written: Written) -> None:
        """Remember what is in the database now."""
        if device not in self._written and len(self._written) >= MAX_DEVICES:
            self._written.clear()
        self._written[device] = written
