"""Reads devices' records for an export, and writes imported ones, in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from edgekit.errors import NotFoundError, SettingsError
from edgekit.identity.record import DeviceRecord, RecordedEvent
from edgekit.mqtt.messages import Reported
from edgekit.rollout.cohort import Device
from edgekit.state._sql import FleetTable, to_json, untrusted_json, untrusted_text
from edgekit.state.audit import record
from edgekit.state.fleet.attributes import put_labels, put_report, report_attributes
from edgekit.state.fleet.devices import quarantine_of, read_device
from edgekit.state.fleet.event_writer import MAX_STORED_EVENTS, MAX_TEXT
from edgekit.state.tables import assignments as assigned
from edgekit.state.tables import devices, events, presence, removed_devices, reports
from edgekit.trust.assignment import Assignment


class RecordTable(FleetTable):
    """Exports and imports devices of one fleet."""

    def export(self, name: str) -> DeviceRecord:
        """The record of one device.

        Raises:
            NotFoundError: no such device is enrolled.
        """
        with self._reading() as connection:
            query = sa.select(devices).where(devices.c.fleet == self._fleet, devices.c.name == name)
            row = connection.execute(query).mappings().first()
            if row is None:
                raise NotFoundError(
                    f"no device {name!r} is enrolled in fleet {self._fleet!r}", advice="See: edgekit device list"
                )
            mine = sa.and_(reports.c.fleet == self._fleet, reports.c.device == name)
            report = connection.execute(sa.select(reports).where(mine)).mappings().first()
            here = sa.and_(presence.c.fleet == self._fleet, presence.c.device == name)
            session = connection.execute(sa.select(presence.c.session).where(here)).scalar()
            history = sa.select(events).where(events.c.fleet == self._fleet, events.c.device == name)
            rows = connection.execute(history.order_by(events.c.id)).mappings().all()
        device = read_device(row)
        return DeviceRecord(
            name=device.name,
            target=device.target,
            public_key=device.public_key,
            labels=device.labels,
            enrolled=device.enrolled,
            session=session or 0,
            received=report["received"] if report else 0.0,
            report=(report["payload"] or b"") if report else b"",
            events=tuple(
                RecordedEvent(
                    **{field: one[field] for field in ("at", "kind", "model", "error", "message")},
                    detail=msgspec.json.decode(one["detail"]),
                )
                for one in rows
            ),
            quarantine=quarantine_of(row),
        )

    def check_free(self, names: Collection[str]) -> None:
        """Check that no device of these names is enrolled. Raises SettingsError for the first one that is."""
        with self._reading() as connection:
            known = connection.execute(sa.select(devices.c.name).where(devices.c.fleet == self._fleet)).scalars()
            taken = sorted(set(names) & set(known))
        if taken:
            raise self._taken(taken[0])

    def add(
        self,
        found: list[tuple[DeviceRecord, Reported | None]],
        now: float,
        *,
        source: str,
        assignments: Mapping[str, Assignment] | None = None,
    ) -> None:
        """Enroll devices with what was known of them; all or none.

        Args:
            found: Records, and each one's report, verified by its key.
            now: Wall clock seconds.
            source: Where they come from, for the audit log.
            assignments: What devices of these names should run, where it is known; it is signed and published again.

        Raises:
            SettingsError: a device of one of these names is enrolled.
            DataError: a report cannot be stored.
        """
        with self._writing() as connection:
            for device, report in found:
                try:
                    self._insert(connection, device, now)
                except sa.exc.IntegrityError as error:
                    raise self._taken(device.name) from error
                self._insert_report(connection, device, report)
                if assignments and (assignment := assignments.get(device.name)):
                    accepted = report.assignment if report else 0
                    values = {
                        "version": max(assignment.version, accepted),
                        "entries": to_json(assignment.entries),
                        "uninstall": to_json(assignment.uninstall),
                    }
                    key = {"fleet": self._fleet, "device": device.name}
                    connection.execute(assigned.insert().values(**key, **values, expires=0.0, published=0))
                after = {"target": device.target, "labels": device.labels, "source": source}
                record(connection, self._fleet, self._author, "device.import", device.name, now=now, after=after)

    def _taken(self, name: str) -> SettingsError:
        return SettingsError(
            f"device {name!r} is already enrolled in fleet {self._fleet!r}; nothing was imported",
            advice=f"Remove it first (edgekit device remove {name}), or import the others only.",
        )

    def _insert(self, connection: sa.Connection, device: DeviceRecord, now: float) -> None:
        enrolled = Device(device.name, device.target, device.public_key, device.labels, device.enrolled)
        row: dict[str, Any] = {**msgspec.structs.asdict(enrolled), "labels": to_json(enrolled.labels)}
        if device.quarantine:
            row |= {"quarantined": now, "quarantine_reason": untrusted_text(device.quarantine, MAX_TEXT)}
        connection.execute(devices.insert().values(fleet=self._fleet, **row))
        put_labels(connection, self._fleet, device.name, device.labels)
        again = sa.and_(removed_devices.c.fleet == self._fleet, removed_devices.c.name == device.name)
        connection.execute(removed_devices.delete().where(again))
        for one in device.events[-MAX_STORED_EVENTS:]:
            detail = to_json(one.detail)
            values = {
                "at": one.at,
                "message": untrusted_text(one.message, MAX_TEXT),
                "detail": detail if len(detail) <= MAX_TEXT else "{}",
                **{name: untrusted_text(getattr(one, name), 63) for name in ("kind", "model", "error")},
            }
            connection.execute(events.insert().values(fleet=self._fleet, device=device.name, **values))

    def _insert_report(self, connection: sa.Connection, device: DeviceRecord, report: Reported | None) -> None:
        key = {"fleet": self._fleet, "device": device.name}
        seen = {"online": False, "session": device.session, "seen": device.received, "telemetry": "{}"}
        mine = sa.and_(presence.c.fleet == self._fleet, presence.c.device == device.name)
        connection.execute(presence.delete().where(mine))
        connection.execute(presence.insert().values(**key, **seen))
        if report is None:
            return
        rows, digest = report_attributes(report)
        values = {
            "number": report.number,
            "received": device.received,
            "body": untrusted_json(report),
            "indexed": digest,
            "payload": device.report,
        }
        connection.execute(reports.insert().values(**key, **values))
        put_report(connection, self._fleet, device.name, rows)
