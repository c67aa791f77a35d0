"""Table of assignments: what each device should run, merged over all rollouts, with a rising version."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import msgspec
import sqlalchemy as sa

from edgekit.bounds import MAX_INTEGER
from edgekit.errors import DataError
from edgekit.state._sql import FleetTable, put, put_new, to_json
from edgekit.state.fleet.devices import read_report
from edgekit.state.tables import assignments, devices, reports
from edgekit.trust.assignment import Entry

# Built at import, because the first decoding of a type in two threads at once crashes in msgspec 0.22.
_ENTRIES = msgspec.json.Decoder(dict[str, Entry])
_NAMES = msgspec.json.Decoder(tuple[str, ...])

log = logging.getLogger(__name__)

# Built at import: building a statement takes longer than running it.
_PUBLISHED = (
    assignments.update()
    .where(assignments.c.fleet == sa.bindparam("of_fleet"), assignments.c.device == sa.bindparam("of_device"))
    .where(assignments.c.version == sa.bindparam("has"))
    .values(published=sa.bindparam("has"))
)


class StoredAssignment(msgspec.Struct, frozen=True):
    """One device's assignment.

    Attributes:
        device: Name of the device.
        version: Rises with every change and every renewal.
        entries: Entries by model name.
        payload: The signed document of this version; None until it is signed.
        expires: Expiry of the signed document, wall clock seconds.
        published: The version that the broker has; 0 for none.
        fault: Why its entries cannot be read; empty if they can. Such an assignment is not signed again.
        uninstall: Models that the device removes, in the order of their names.
    """

    device: str
    version: int
    entries: dict[str, Entry]
    payload: bytes | None
    expires: float
    published: int = 0
    fault: str = ""
    uninstall: tuple[str, ...] = ()


class AssignmentTable(FleetTable):
    """The assignments of one fleet."""

    def get(self, device: str) -> StoredAssignment | None:
        """The assignment of one device; None if nothing was ever assigned to it."""
        with self._reading() as connection:
            row = connection.execute(self._query().where(assignments.c.device == device)).mappings().first()
        return _read(row) if row is not None else None

    def unsigned(self, renew_before: float) -> list[StoredAssignment]:
        """Assignments that must be signed: unsigned ones, and those that expire before `renew_before` (wall clock)."""
        query = self._given().where(sa.or_(assignments.c.payload.is_(None), assignments.c.expires < renew_before))
        with self._reading() as connection:
            stored = [_read(row) for row in connection.execute(query).mappings()]
        for one in stored:
            if one.fault:
                log.warning("the assignment of %s cannot be signed: %s", one.device, one.fault)
        return [one for one in stored if not one.fault]

    def renew_other_signers(self, keyid: str) -> int:
        """Mark assignments of other keys than `keyid`, so that they are signed again; returns their number."""
        with self._writing() as connection:
            rows = [_read(row) for row in connection.execute(self._query()).mappings()]
            others = [row for row in rows if row.payload is not None and keyid.encode() not in row.payload]
            for row in others:
                self._update(connection, row.device, row.version, {"expires": 0.0})
        return len(others)

    def unpublished(self) -> list[StoredAssignment]:
        """Signed assignments that the broker does not have yet."""
        query = self._given().where(assignments.c.payload.is_not(None), assignments.c.published < assignments.c.version)
        with self._reading() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def renew(self, device: str, version: int) -> int | None:
        """Give an expiring assignment a new version; None if another process changed it meanwhile."""
        with self._writing() as connection:
            row = connection.execute(self._one(device)).mappings().first()
            if row is None or row["version"] != version:
                return None
            rising = next_version(connection, self._fleet, device, version)
            self._update(connection, device, version, {"version": rising, "payload": None})
        return rising

    def signed(self, device: str, version: int, payload: bytes, expires: float) -> None:
        """Store the signed document of `version`, unless the assignment has changed since."""
        with self._writing() as connection:
            self._update(connection, device, version, {"payload": payload, "expires": expires})

    def published(self, device: str, version: int) -> None:
        """Record that the broker has `version`."""
        self.published_all([(device, version)])

    def published_all(self, published: Sequence[tuple[str, int]]) -> None:
        """Record for each device the version that the broker has."""
        rows = [{"of_fleet": self._fleet, "of_device": device, "has": version} for device, version in published]
        if rows:
            with self._writing() as connection:
                connection.execute(_PUBLISHED, rows)

    def all(self, names: Collection[str] | None = None) -> list[StoredAssignment]:
        """All assignments, or those of the named devices, by device name; none of a device in quarantine."""
        query = self._given() if names is None else self._given().where(assignments.c.device.in_(names))
        with self._reading() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def names(self) -> list[str]:
        """The devices with an assignment that are not in quarantine."""
        with self._reading() as connection:
            return [row.device for row in connection.execute(self._given().with_only_columns(assignments.c.device))]

    def _update(self, connection: sa.Connection, device: str, version: int, values: dict[str, object]) -> None:
        connection.execute(
            assignments.update()
            .where(assignments.c.fleet == self._fleet, assignments.c.device == device, assignments.c.version == version)
            .values(**values)
        )

    def _query(self) -> sa.Select[tuple[object, ...]]:
        return sa.select(assignments).where(assignments.c.fleet == self._fleet).order_by(assignments.c.device)

    def _given(self) -> sa.Select[tuple[object, ...]]:
        """The assignments of devices that are not in quarantine."""
        held = sa.select(devices.c.name).where(devices.c.fleet == self._fleet, devices.c.quarantined.is_not(None))
        return self._query().where(assignments.c.device.not_in(held))

    def _one(self, device: str) -> sa.Select[tuple[object, ...]]:
        return self._query().where(assignments.c.device == device).with_for_update()


def assign(
    connection: sa.Connection,
    fleet: str,
    device: str,
    model: str,
    entry: Entry | None,
    *,
    uninstall: bool = False,
) -> Entry | None:
    """Change the entry of `model` in the assignment of `device`, inside the caller's transaction.

    Args:
        connection: The transaction.
        fleet, device: The device.
        model: Name of the model.
        entry: The new entry; None removes the model from the assignment.
        uninstall: Without an entry, the device removes the model; otherwise it keeps what it has.

    Returns:
        The previous entry; None if there was none.

    Raises:
        DataError: the stored entries cannot be read; nothing was changed.
    """
    where = sa.and_(assignments.c.fleet == fleet, assignments.c.device == device)
    locked = sa.select(assignments).where(where).with_for_update()
    row = connection.execute(locked).mappings().first()
    if row is None and connection.dialect.name == "postgresql":  # SQLite's writers take turns
        empty = {"version": 0, "entries": "{}", "uninstall": "[]", "expires": 0.0, "published": 0}
        put_new(connection, assignments, ("fleet", "device"), [{"fleet": fleet, "device": device, **empty}])
        row = connection.execute(locked).mappings().first()
    entries = _entries(row["entries"], device) if row is not None else {}
    removed = set(_names(row["uninstall"], device)) if row is not None else set()
    previous = entries.pop(model, None)
    if entry is not None:
        entries[model] = entry
        removed.discard(model)
    elif uninstall:
        removed.add(model)
    version = next_version(connection, fleet, device, row["version"] if row is not None else 0)
    values = {"version": version, "entries": to_json(entries), "payload": None, "uninstall": to_json(sorted(removed))}
    on_insert = {"expires": 0.0, "published": 0}
    put(connection, assignments, {"fleet": fleet, "device": device}, values, on_insert=on_insert)
    return previous


def next_version(connection: sa.Connection, fleet: str, device: str, version: int) -> int:
    """A version above `version` and above the one that the device reported, in case the database was restored."""
    query = sa.select(reports.c.body).where(reports.c.fleet == fleet, reports.c.device == device)
    body = connection.execute(query).scalar()
    report = read_report(body)
    reported = report.assignment if report else 0
    return max(version, reported if 0 <= reported < MAX_INTEGER else 0) + 1


def assigned_entries(connection: sa.Connection, fleet: str, device: str) -> dict[str, Entry]:
    """The entries of a device's assignment by model name. Raises DataError if they cannot be read."""
    query = sa.select(assignments.c.entries).where(assignments.c.fleet == fleet, assignments.c.device == device)
    text = connection.execute(query).scalar()
    return _entries(text, device) if text else {}


def uninstalled(connection: sa.Connection, fleet: str, device: str) -> tuple[str, ...]:
    """The models that a device's assignment removes. Raises DataError if they cannot be read."""
    query = sa.select(assignments.c.uninstall).where(assignments.c.fleet == fleet, assignments.c.device == device)
    text = connection.execute(query).scalar()
    return _names(text, device) if text else ()


def _names(text: str, device: str) -> tuple[str, ...]:
    try:
        return _NAMES.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DataError(f"the models to uninstall on {device} cannot be read: {error}") from error


def _entries(text: str, device: str) -> dict[str, Entry]:
    try:
        return _ENTRIES.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DataError(f"the stored assignment of {device} cannot be read: {error}") from error


def _read(row: sa.RowMapping) -> StoredAssignment:
    entries: dict[str, Entry] = {}
    removed: tuple[str, ...] = ()
    fault = ""
    try:
        entries, removed = _entries(row["entries"], row["device"]), _names(row["uninstall"], row["device"])
    except DataError as error:
        fault = str(error)
    return StoredAssignment(
        device=row["device"],
        version=row["version"],
        entries=entries,
        payload=row["payload"],
        expires=row["expires"],
        published=row["published"],
        fault=fault,
        uninstall=removed,
    )
