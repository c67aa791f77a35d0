"""Devices: who is enrolled, what they last reported, whether they are there, what happened to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from edgekit.errors import DataError, NotFoundError, SettingsError
from edgekit.mqtt.messages import Event, Outcome, Presence, Reported, Running, Telemetry
from edgekit.rollout.cohort import Device
from edgekit.state._sql import MAX_INTEGER, Part, outside_json, outside_text, put, to_json
from edgekit.state.tables import devices, events, presence, reports

KEPT_EVENTS = 10_000
MAX_TEXT = 2_000


class DeviceView(msgspec.Struct, frozen=True):
    """One device as an operator sees it.

    Attributes:
        device, target, labels, enrolled: As enrolled.
        online: Its birth was seen, no will since, and it was heard of lately.
        seen: Wall clock seconds of its last message; 0 for never.
        assignment: Version of the assignment that it last accepted.
        models, outcomes, facts: As it last reported.
        telemetry: Its last counters.
    """

    device: str
    target: str
    labels: dict[str, str]
    enrolled: float
    online: bool
    seen: float
    assignment: int = 0
    models: dict[str, Running] = {}
    outcomes: dict[str, Outcome] = {}
    facts: dict[str, Any] = {}
    telemetry: dict[str, Any] = {}


class StoredEvent(msgspec.Struct, frozen=True):
    """One thing that happened; `at` is the controller's wall clock."""

    device: str
    at: float
    kind: str
    model: str
    error: str
    message: str
    detail: dict[str, Any]


class DeviceTable(Part):
    """The devices of one fleet."""

    def enroll(self, device: Device) -> None:
        """Add a device.

        Raises:
            SettingsError: one of this name is enrolled.
        """
        row = {
            "target": device.target,
            "public_key": device.public_key,
            "labels": to_json(device.labels),
            "enrolled": device.enrolled,
        }
        try:
            with self._writing() as connection:
                connection.execute(devices.insert().values(fleet=self._fleet, name=device.name, **row))
        except sa.exc.IntegrityError as error:
            raise SettingsError(
                f"device {device.name!r} is already enrolled in fleet {self._fleet!r}",
                advice="Choose another name.",
            ) from error

    def get(self, name: str) -> Device:
        """One device.

        Raises:
            NotFoundError: no such device is enrolled.
        """
        with self._reading() as connection:
            row = connection.execute(self._devices().where(devices.c.name == name)).mappings().first()
        if row is None:
            raise NotFoundError(
                f"no device {name!r} is enrolled in fleet {self._fleet!r}", advice="`edgekit device list` names them."
            )
        return read_device(row)

    def all(self) -> list[Device]:
        """All devices, by name."""
        with self._reading() as connection:
            return [read_device(row) for row in connection.execute(self._devices()).mappings()]

    def views(self, now: float, offline_after_seconds: float, name: str | None = None) -> list[DeviceView]:
        """All devices, or the one called `name`, as an operator sees them."""
        query = (
            sa.select(devices, reports.c.body, presence.c.online, presence.c.seen, presence.c.telemetry)
            .outerjoin(reports, (reports.c.fleet == devices.c.fleet) & (reports.c.device == devices.c.name))
            .outerjoin(presence, (presence.c.fleet == devices.c.fleet) & (presence.c.device == devices.c.name))
            .where(devices.c.fleet == self._fleet)
            .order_by(devices.c.name)
        )
        if name is not None:
            query = query.where(devices.c.name == name)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [_view(row, now - offline_after_seconds) for row in rows]

    def latest_change(self) -> float:
        """When a device last enrolled or reported, wall clock seconds; 0 for never."""
        enrolled = sa.select(sa.func.max(devices.c.enrolled)).where(devices.c.fleet == self._fleet)
        received = sa.select(sa.func.max(reports.c.received)).where(reports.c.fleet == self._fleet)
        with self._reading() as connection:
            return max(connection.execute(query).scalar() or 0.0 for query in (enrolled, received))

    def save_report(self, report: Reported, now: float, *, live: bool = True) -> bool:
        """Keep `report` unless one as new is known; returns whether it was kept.

        With `live` it was sent just now, so the device is there, whatever a late will of its may have said.

        Raises:
            DataError: it cannot be kept.
        """
        if not 0 < report.number <= MAX_INTEGER:
            raise DataError(f"report number {report.number} is outside 1 to {MAX_INTEGER}")
        body = outside_json(report)
        key = {"fleet": self._fleet, "device": report.device}
        with self._writing() as connection:
            values = {"number": report.number, "received": now, "body": body}
            if not put(connection, reports, key, values, only_if=reports.c.number < report.number):
                return False
            if live:
                self._put_presence(connection, report.device, {"seen": now, "online": True})
        return True

    def save_presence(self, name: str, message: Presence, now: float) -> None:
        """Keep a birth or a will; the will of a session that was followed by another is passed over."""
        if not 0 <= message.session <= MAX_INTEGER:
            return
        with self._writing() as connection:
            values: dict[str, Any] = {"online": message.online, "session": message.session}
            if message.online:
                values["seen"] = now
            self._put_presence(connection, name, values, only_if=presence.c.session <= message.session)

    def save_telemetry(self, telemetry: Telemetry, now: float) -> None:
        """Keep a device's last counters. Raises DataError when they cannot be kept."""
        text = outside_json(telemetry)
        with self._writing() as connection:
            self._put_presence(connection, telemetry.device, {"seen": now, "telemetry": text})

    def add_event(self, event: Event, now: float) -> None:
        """Keep one thing that happened; the oldest are dropped beyond KEPT_EVENTS.

        Raises:
            DataError: it cannot be kept.
        """
        outside_json(event)
        detail = to_json(event.detail)
        values = {
            "at": now,
            "message": outside_text(event.message, MAX_TEXT),
            "detail": detail if len(detail) <= MAX_TEXT else "{}",
            **{name: outside_text(getattr(event, name), 63) for name in ("device", "kind", "model", "error")},
        }
        with self._writing() as connection:
            result = connection.execute(events.insert().values(fleet=self._fleet, **values))
            newest = (result.inserted_primary_key or (0,))[0]
            connection.execute(
                events.delete().where(events.c.fleet == self._fleet, events.c.id <= newest - KEPT_EVENTS)
            )

    def events(self, name: str | None = None, limit: int = 20) -> list[StoredEvent]:
        """The newest events, newest first, of all devices or of one."""
        query = sa.select(events).where(events.c.fleet == self._fleet).order_by(events.c.id.desc()).limit(limit)
        if name is not None:
            query = query.where(events.c.device == name)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        names = [field for field in StoredEvent.__struct_fields__ if field != "detail"]
        return [
            StoredEvent(**{field: row[field] for field in names}, detail=msgspec.json.decode(row["detail"]))
            for row in rows
        ]

    def _devices(self) -> sa.Select[Any]:
        return sa.select(devices).where(devices.c.fleet == self._fleet).order_by(devices.c.name)

    def _put_presence(
        self,
        connection: sa.Connection,
        name: str,
        values: Mapping[str, Any],
        only_if: sa.ColumnElement[bool] | None = None,
    ) -> None:
        unheard = {"online": False, "session": 0, "seen": 0.0, "telemetry": "{}"}
        at_first = {column: value for column, value in unheard.items() if column not in values}
        put(connection, presence, {"fleet": self._fleet, "device": name}, values, at_first=at_first, only_if=only_if)


def read_device(row: sa.RowMapping) -> Device:
    """A row of `devices` as a value."""
    return Device(
        name=row["name"],
        target=row["target"],
        public_key=row["public_key"],
        labels=msgspec.json.decode(row["labels"], type=dict[str, str]),
        enrolled=row["enrolled"],
    )


def _view(row: sa.RowMapping, since: float) -> DeviceView:
    device = read_device(row)
    report = msgspec.json.decode(row["body"], type=Reported) if row["body"] else None
    return DeviceView(
        device=device.name,
        target=device.target,
        labels=device.labels,
        enrolled=device.enrolled,
        online=bool(row["online"]) and row["seen"] >= since,
        seen=row["seen"] or 0.0,
        assignment=report.assignment if report else 0,
        models=report.models if report else {},
        outcomes=report.outcomes if report else {},
        facts=report.facts if report else {},
        telemetry=msgspec.json.decode(row["telemetry"]) if row["telemetry"] else {},
    )
