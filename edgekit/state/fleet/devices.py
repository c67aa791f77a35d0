"""Tables of devices: enrollment, last reports, presence, telemetry and events."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edgekit.bounds import MAX_DATE, MAX_INTEGER, MAX_ROW, number_fault
from edgekit.errors import NotFoundError, SettingsError
from edgekit.identity.series import StoredNumbers
from edgekit.mqtt.messages import Event, Outcome, Presence, Reported, Running, Telemetry
from edgekit.rollout.cohort import Cohort, Device, check_labels
from edgekit.state._sql import FleetTable, put_all, to_json, untrusted_json
from edgekit.state.audit import record
from edgekit.state.fleet.attributes import put_labels
from edgekit.state.fleet.event_writer import MAX_STORED_EVENTS, insert_event
from edgekit.state.fleet.filters import cohort_condition, is_recent
from edgekit.state.fleet.report_writer import CheckedReport, ReportWriter, check_report
from edgekit.state.tables import assignments, commands, devices, events, presence, removed_devices, reports


class _Versioned(msgspec.Struct, frozen=True):
    """The needed part of an assignment's entry."""

    version: str


# Built at import, because the first decoding of a type in two threads at once crashes in msgspec 0.22.
_REPORTED = msgspec.json.Decoder(Reported)
_LABELS = msgspec.json.Decoder(dict[str, str])
_VERSIONS = msgspec.json.Decoder(dict[str, _Versioned])

EVERY_DEVICE = Cohort()
SORTS = ("name", "target", "enrolled", "seen")
_KEY = ("fleet", "device")
# Built at import: building a statement takes longer than running it.
_KEYS = (
    sa.select(devices.c.name, devices.c.public_key)
    .where(devices.c.fleet == sa.bindparam("of_fleet"))
    .where(devices.c.name.in_(sa.bindparam("names", expanding=True)))
)


class DeviceView(msgspec.Struct, frozen=True):
    """One device as an operator sees it.

    Attributes:
        device, target, labels, enrolled: As enrolled.
        online: True if it is connected and sent a message lately.
        seen: Wall clock seconds of its last message; 0 if there was none.
        assigned: Version of each model that its assignment names; empty where nothing is assigned.
        assignment: Version of the assignment that it last accepted.
        models, outcomes, facts: From its last report.
        telemetry: Its last counters.
        fault: What of its rows in the database cannot be read; empty if all can.
        quarantine: Why it is in quarantine; empty if it is not.
    """

    device: str
    target: str
    labels: dict[str, str]
    enrolled: float
    online: bool
    seen: float
    assigned: dict[str, str] = {}
    assignment: int = 0
    models: dict[str, Running] = {}
    outcomes: dict[str, Outcome] = {}
    facts: dict[str, Any] = {}
    telemetry: dict[str, Any] = {}
    fault: str = ""
    quarantine: str = ""

    @property
    def edgekit(self) -> str:
        """Version of the device's edgekit; empty before it has reported it."""
        return str(self.facts.get("edgekit", ""))


class StoredEvent(msgspec.Struct, frozen=True):
    """One event of a device; `at` is the controller's wall clock in seconds, and `id` rises with every event."""

    id: int
    device: str
    at: float
    kind: str
    model: str
    error: str
    message: str
    detail: dict[str, Any]


class DeviceTable(FleetTable):
    """The devices of one fleet.

    Args:
        engine, fleet, author: As `FleetTable`.
        max_events: Events to keep for each device; its older ones are deleted. Events about names that are not enrolled
            are kept for all of them together.
    """

    def __init__(
        self, engine: sa.Engine, fleet: str, *, author: str = "unknown", max_events: int = MAX_STORED_EVENTS
    ) -> None:
        super().__init__(engine, fleet, author=author)
        self._max_events = max_events
        self._reports = ReportWriter(fleet, max_events=max_events)

    def enroll(self, device: Device) -> None:
        """Add a device.

        Raises:
            SettingsError: a device with this name is enrolled, a label is not valid, or the time is no finite number.
        """
        check_labels(device.labels)
        if fault := number_fault("enrolled", device.enrolled, 0, MAX_DATE):
            raise SettingsError(fault)
        row = {
            "target": device.target,
            "public_key": device.public_key,
            "labels": to_json(device.labels),
            "enrolled": device.enrolled,
        }
        with self._writing() as connection:
            try:
                connection.execute(devices.insert().values(fleet=self._fleet, name=device.name, **row))
                again = sa.and_(removed_devices.c.fleet == self._fleet, removed_devices.c.name == device.name)
                connection.execute(removed_devices.delete().where(again))
                put_labels(connection, self._fleet, device.name, device.labels)
                state = {"target": device.target, "labels": device.labels, "enrolled": device.enrolled}
                now = device.enrolled
                record(connection, self._fleet, self._author, "device.enroll", device.name, now=now, after=state)
            except sa.exc.IntegrityError as error:
                raise SettingsError(
                    f"device {device.name!r} is already enrolled in fleet {self._fleet!r}",
                    advice="Choose another name; `edgekit device list` shows the names in use.",
                ) from error

    def get(self, name: str) -> Device:
        """One device.

        Raises:
            NotFoundError: no device with this name is enrolled.
        """
        with self._reading() as connection:
            row = connection.execute(self._devices().where(devices.c.name == name)).mappings().first()
        if row is None:
            raise self.unknown(name)
        return read_device(row)

    def unknown(self, name: str) -> NotFoundError:
        """The error for a name that is not enrolled."""
        return NotFoundError(
            f"no device {name!r} is enrolled in fleet {self._fleet!r}", advice="See: edgekit device list"
        )

    def public_keys(self, names: Collection[str]) -> dict[str, str]:
        """The public keys (PEM) of those of the named devices that are enrolled, by name."""
        with self._reading() as connection:
            found = connection.execute(_KEYS, {"of_fleet": self._fleet, "names": list(names)})
            return {row.name: row.public_key for row in found}

    def all(self) -> list[Device]:
        """All devices, by name."""
        with self._reading() as connection:
            return [read_device(row) for row in connection.execute(self._devices()).mappings()]

    def views(
        self,
        now: float,
        offline_after_seconds: float,
        name: str | None = None,
        *,
        cohort: Cohort = EVERY_DEVICE,
        after: str = "",
        offset: int = 0,
        limit: int | None = None,
        sort: str = "name",
    ) -> list[DeviceView]:
        """Devices as an operator sees them.

        Args:
            now: Wall clock seconds.
            offline_after_seconds: A device that sent nothing for this long is offline.
            name: Name of one device; None for all.
            cohort: Only these devices.
            after: Only devices whose names come after this one, for the next page of a list by name.
            offset: Number of devices to leave out at the start, for the next page of any list.
            limit: Number of devices of a page; None for all.
            sort: One of SORTS, or with ``-`` before it for the reverse order; equal ones by name.

        Raises:
            SettingsError: the cohort's filter cannot be read, or names a group that is not there, or `sort` is unknown.
        """
        heard = (presence.c.fleet == devices.c.fleet) & (presence.c.device == devices.c.name)
        order = (*_order(sort), devices.c.name)
        page = (
            sa.select(devices.c.name)
            .select_from(devices.outerjoin(presence, heard))
            .where(devices.c.fleet == self._fleet, devices.c.name > after)
            .where(cohort_condition(cohort, now, offline_after_seconds))
        )
        if name is not None:
            page = page.where(devices.c.name == name)
        if limit is not None or offset:  # no report is read but those of the page; SQLite needs a limit with an offset
            page = page.order_by(*order).limit(MAX_ROW if limit is None else limit).offset(offset)
        query = (
            sa.select(
                devices,
                reports.c.body,
                presence.c.online,
                presence.c.seen,
                presence.c.telemetry,
                assignments.c.entries,
            )
            .outerjoin(reports, (reports.c.fleet == devices.c.fleet) & (reports.c.device == devices.c.name))
            .outerjoin(presence, heard)
            .outerjoin(assignments, (assignments.c.fleet == devices.c.fleet) & (assignments.c.device == devices.c.name))
            .where(devices.c.fleet == self._fleet, devices.c.name.in_(page.subquery().select()))
            .order_by(*order)
        )
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [_view(row, now, offline_after_seconds) for row in rows]

    def count(self, now: float, offline_after_seconds: float, cohort: Cohort = EVERY_DEVICE) -> int:
        """Number of devices that a cohort selects. Arguments and errors as `views`."""
        query = sa.select(sa.func.count()).select_from(devices).where(devices.c.fleet == self._fleet)
        with self._reading() as connection:
            condition = cohort_condition(cohort, now, offline_after_seconds)
            return connection.execute(query.where(condition)).scalar() or 0

    def save_report(self, report: Reported, now: float, *, live: bool = True, payload: bytes | None = None) -> bool:
        """Store one report; True if it was stored. Arguments and errors as `check_report`, else as `save_reports`."""
        return not self.save_reports([check_report(report, live=live, payload=payload)], now)[0]

    def save_reports(self, checked: Sequence[CheckedReport], now: float) -> list[int]:
        """Store reports, but for those with a number that is not above the stored one.

        Args:
            checked: Reports in the order of their arrival.
            now: Wall clock seconds.

        Returns:
            For each, 0 if it was stored, else the number of the report that is stored instead.
        """
        with self._writing() as connection:
            return self._reports.write(connection, checked, now)

    def numbers(self, name: str) -> StoredNumbers:
        """The highest numbers that the database has of a device."""
        key = sa.and_(reports.c.fleet == self._fleet, reports.c.device == name)
        mine = sa.and_(presence.c.fleet == self._fleet, presence.c.device == name)
        with self._reading() as connection:
            row = connection.execute(sa.select(reports).where(key)).mappings().first()
            session = connection.execute(sa.select(presence.c.session).where(mine)).scalar() or 0
            command = sa.select(sa.func.max(commands.c.number)).where(
                commands.c.fleet == self._fleet, commands.c.device == name
            )
            highest = connection.execute(command).scalar() or 0
        if row is None:
            return StoredNumbers(session=session, command=highest)
        report = read_report(row["body"])
        if report is not None:
            highest = max(highest, report.command)
        run = report.run if report else ""
        return StoredNumbers(row["number"], session, highest, row["received"], run, row["payload"] or b"")

    def save_presence(self, name: str, message: Presence, now: float) -> None:
        """Store one birth or will, as `save_presences`."""
        self.save_presences([(name, message)], now)

    def save_presences(self, messages: Sequence[tuple[str, Presence]], now: float) -> None:
        """Store births and wills in their order, each with the name of its device; ignores wills of older sessions."""
        defaults: dict[str, Any] = {"telemetry": "{}"}
        valid = [(name, message) for name, message in messages if 0 <= message.session <= MAX_INTEGER]
        with self._writing() as connection:
            for online, group in itertools.groupby(valid, key=lambda one: one[1].online):
                seen, unseen = ({"seen": now}, {}) if online else ({}, {"seen": 0.0})
                rows = [
                    {"fleet": self._fleet, "device": name, "online": online, "session": message.session, **seen}
                    for name, message in group
                ]
                put_all(connection, presence, _KEY, rows, on_insert={**defaults, **unseen}, only_if=_not_older)

    def save_telemetry(self, telemetry: Telemetry, now: float) -> None:
        """Store a device's last counters. Raises DataError if they cannot be stored as JSON."""
        self.save_counters([(telemetry.device, untrusted_json(telemetry))], now)

    def save_counters(self, counters: Sequence[tuple[str, str]], now: float) -> None:
        """Store the last counters of devices: name and JSON of each, in the order of their arrival."""
        defaults = {"online": False, "session": 0}
        rows = [
            {"fleet": self._fleet, "device": name, "seen": now, "telemetry": text}
            for name, text in dict(counters).items()
        ]
        with self._writing() as connection:
            put_all(connection, presence, _KEY, rows, on_insert=defaults)

    def add_event(self, event: Event, now: float) -> None:
        """Store one event, once; deletes the device's oldest events above `max_events`, and none of other devices.

        Raises:
            DataError: the event cannot be stored as JSON.
        """
        with self._writing() as connection:
            insert_event(connection, self._fleet, event, now, max_events=self._max_events)

    def events(
        self,
        name: str | None = None,
        limit: int = 20,
        *,
        before: int | None = None,
        after: int | None = None,
        alarms: bool = False,
    ) -> list[StoredEvent]:
        """Events of all devices or of the device `name`, the newest first.

        Args:
            name: Name of one device; None for all.
            limit: Number of events.
            before: Only events with a lower id, for the next page.
            after: Only events with a higher id, and then the oldest first.
            alarms: Only events that report an error.
        """
        query = sa.select(events).where(events.c.fleet == self._fleet).limit(limit)
        query = query.order_by(events.c.id.desc() if after is None else events.c.id)
        if name is not None:
            query = query.where(events.c.device == name)
        if before is not None:
            query = query.where(events.c.id < before)
        if after is not None:
            query = query.where(events.c.id > after)
        if alarms:
            query = query.where(events.c.error != "")
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        names = [field for field in StoredEvent.__struct_fields__ if field != "detail"]
        return [
            StoredEvent(**{field: row[field] for field in names}, detail=msgspec.json.decode(row["detail"]))
            for row in rows
        ]

    def _devices(self) -> sa.Select[Any]:
        return sa.select(devices).where(devices.c.fleet == self._fleet).order_by(devices.c.name)


def _not_older(row: Any) -> sa.ColumnElement[bool]:
    not_older: sa.ColumnElement[bool] = presence.c.session <= row.session
    return not_older


def _order(sort: str) -> list[sa.ColumnElement[Any]]:
    """The columns to sort by, before the name."""
    columns: dict[str, sa.ColumnElement[Any]] = {
        "name": devices.c.name,
        "target": devices.c.target,
        "enrolled": devices.c.enrolled,
        "seen": sa.func.coalesce(presence.c.seen, 0.0),
    }
    column = columns.get(sort.removeprefix("-"))
    if column is None:
        near = difflib.get_close_matches(sort.removeprefix("-"), columns, n=1)
        raise SettingsError(
            f"sort is {sort!r}, expected one of {', '.join(columns)}, or with - before it for the reverse order",
            advice=f"Did you mean {near[0]!r}?" if near else "",
        )
    return [column.desc() if sort.startswith("-") else column]


def read_report(body: str | None) -> Reported | None:
    """The stored report; None where there is none, or it cannot be read: the device sends another one soon."""
    try:
        return _REPORTED.decode(body) if body else None
    except (msgspec.MsgspecError, ValueError):
        return None


def read_device(row: sa.RowMapping) -> Device:
    """The Device in a row of the table `devices`; without labels where they cannot be read."""
    return Device(
        name=row["name"],
        target=row["target"],
        public_key=row["public_key"],
        labels=_labels(row["labels"]) or {},
        enrolled=row["enrolled"],
    )


def _labels(text: str) -> dict[str, str] | None:
    try:
        return _LABELS.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return None


def _view(row: sa.RowMapping, now: float, offline_after_seconds: float) -> DeviceView:
    device = read_device(row)
    report = read_report(row["body"])
    faults = ["its labels"] if _labels(row["labels"]) is None else []
    faults += ["its report"] if row["body"] and report is None else []
    assigned = assigned_versions(row["entries"])
    faults += ["its assignment"] if assigned is None else []
    return DeviceView(
        device=device.name,
        target=device.target,
        labels=device.labels,
        enrolled=device.enrolled,
        online=bool(row["online"]) and is_recent(row["seen"], now, offline_after_seconds),
        seen=row["seen"] or 0.0,
        assigned=assigned or {},
        assignment=report.assignment if report else 0,
        models=report.models if report else {},
        outcomes=report.outcomes if report else {},
        facts=report.facts if report else {},
        telemetry=_telemetry(row["telemetry"]),
        fault=f"the database's row cannot be read: {', '.join(faults)}" if faults else "",
        quarantine=quarantine_of(row),
    )


def quarantine_of(row: sa.RowMapping) -> str:
    """Why the device in a row of the table `devices` is in quarantine; empty if it is not."""
    return (row["quarantine_reason"] or "yes") if row["quarantined"] is not None else ""


def assigned_versions(text: str | None) -> dict[str, str] | None:
    """Version by model of a stored assignment; None where it cannot be read."""
    try:
        return {model: one.version for model, one in _VERSIONS.decode(text).items()} if text else {}
    except (msgspec.MsgspecError, ValueError):
        return None


def _telemetry(text: str | None) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any]) if text else {}
    except (msgspec.MsgspecError, ValueError):
        return {}
