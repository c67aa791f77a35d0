"""Tables of issued certificates and of enrollment codes."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from edgekit.errors import NotFoundError, RefusedError, SettingsError
from edgekit.identity.authority import Issued
from edgekit.identity.join import StoredCode, check_use
from edgekit.rollout.cohort import Device, check_labels
from edgekit.state._sql import FleetTable, to_json
from edgekit.state.audit import record
from edgekit.state.fleet.attributes import put_labels
from edgekit.state.tables import certificates, devices, join_codes, removed_devices


class StoredCertificate(msgspec.Struct, frozen=True):
    """An issued certificate; times are wall clock seconds, `revoked` is 0 for one that is not revoked."""

    name: str
    serial: str
    issued: float
    expires: float
    revoked: float


class CertificateTable(FleetTable):
    """The certificates and the enrollment codes of one fleet."""

    def add(self, issued: Issued) -> None:
        """Store an issued certificate."""
        with self._writing() as connection:
            self._add(connection, issued)

    def all(self, name: str | None = None) -> list[StoredCertificate]:
        """Certificates, the newest last; of one name, or of all."""
        query = sa.select(certificates).where(certificates.c.fleet == self._fleet)
        if name is not None:
            query = query.where(certificates.c.name == name)
        with self._reading() as connection:
            rows = connection.execute(query.order_by(certificates.c.issued, certificates.c.serial)).mappings()
            return [StoredCertificate(**{f: row[f] for f in StoredCertificate.__struct_fields__}) for row in rows]

    def ending(self, now: float, seconds: float) -> list[tuple[str, float]]:
        """Brokers and controllers whose last certificate ends within `seconds` of `now`, or ended as lately.

        Returns:
            Names, and the ends; all wall clock seconds. Devices are left out: they renew theirs.
        """
        own, last = certificates.c.name, sa.func.max(certificates.c.expires)
        query = sa.select(own, last).where(certificates.c.fleet == self._fleet, certificates.c.revoked == 0.0)
        for table in (devices, removed_devices):
            query = query.where(own.not_in(sa.select(table.c.name).where(table.c.fleet == self._fleet)))
        query = query.group_by(own).having(last.between(now - seconds, now + seconds)).order_by(own)
        with self._reading() as connection:
            return [(name, expires) for name, expires in connection.execute(query)]

    def revoke(self, name: str, now: float) -> list[StoredCertificate]:
        """Revoke every certificate of a name that has not expired. Returns them.

        Raises:
            NotFoundError: it has none.
        """
        valid = sa.and_(
            certificates.c.fleet == self._fleet,
            certificates.c.name == name,
            certificates.c.revoked == 0.0,
            certificates.c.expires > now,
        )
        with self._writing() as connection:
            rows = connection.execute(sa.select(certificates).where(valid)).mappings().all()
            if not rows:
                raise NotFoundError(f"{name} has no valid certificate", advice="See: edgekit ca list")
            connection.execute(certificates.update().where(valid).values(revoked=now))
            before = {"serials": [row["serial"] for row in rows]}
            record(connection, self._fleet, self._author, "certificate.revoke", name, now=now, before=before)
        return [StoredCertificate(**{f: row[f] for f in StoredCertificate.__struct_fields__}) for row in rows]

    def revoked(self) -> list[tuple[str, float]]:
        """Serial numbers and times of the revoked certificates, for the list of the authority."""
        return [(one.serial, one.revoked) for one in self.all() if one.revoked]

    def add_code(self, code: StoredCode, now: float) -> None:
        """Store an enrollment code. Raises SettingsError for labels that are not valid."""
        check_labels(code.labels)
        values = {**msgspec.structs.asdict(code), "labels": to_json(code.labels), "created": now}
        with self._writing() as connection:
            connection.execute(join_codes.insert().values(fleet=self._fleet, **values))
            after = {"expires": code.expires, "quota": code.left, "name": code.name, "target": code.target}
            record(connection, self._fleet, self._author, "code.add", code.token, now=now, after=after)

    def codes(self, now: float) -> list[StoredCode]:
        """The enrollment codes that can still be used at `now` (wall clock seconds), by their expiry."""
        usable = sa.and_(join_codes.c.fleet == self._fleet, join_codes.c.expires > now, join_codes.c.left > 0)
        query = sa.select(join_codes).where(usable).order_by(join_codes.c.expires, join_codes.c.token)
        with self._reading() as connection:
            return [_read_code(row) for row in connection.execute(query).mappings()]

    def revoke_code(self, token: str, now: float) -> StoredCode:
        """Let an enrollment code expire now. Returns it as it was. Raises NotFoundError."""
        mine = sa.and_(join_codes.c.fleet == self._fleet, join_codes.c.token == token)
        with self._writing() as connection:
            row = connection.execute(sa.select(join_codes).where(mine).with_for_update()).mappings().first()
            if row is None:
                raise NotFoundError(
                    f"there is no enrollment code {token[:16]!r}", advice="See: edgekit device code --list"
                )
            connection.execute(join_codes.update().where(mine).values(expires=min(now, row["expires"])))
            before = {"expires": row["expires"], "quota": row["left"]}
            record(connection, self._fleet, self._author, "code.revoke", token, now=now, before=before)
        return _read_code(row)

    def code(self, token: str) -> StoredCode:
        """An enrollment code. Raises NotFoundError."""
        query = sa.select(join_codes).where(join_codes.c.fleet == self._fleet, join_codes.c.token == token)
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFoundError(f"there is no enrollment code {token[:16]!r}", advice="Ask for a new code.")
        return _read_code(row)

    def claim(self, token: str, device: Device, issued: Issued, now: float) -> bool:
        """Enroll a device with a code, and store its certificate; all or nothing.

        A repeated claim of the same device with the same key takes nothing of the quota.

        Returns:
            True if the device is new.

        Raises:
            NotFoundError, RefusedError, DataError: the code cannot be used, as `check_use`.
            SettingsError: the name is enrolled with another key.
        """
        with self._writing() as connection:
            mine = sa.and_(join_codes.c.fleet == self._fleet, join_codes.c.token == token)
            row = connection.execute(sa.select(join_codes).where(mine).with_for_update()).mappings().first()
            if row is None:
                raise NotFoundError(f"there is no enrollment code {token[:16]!r}", advice="Ask for a new code.")
            code = _read_code(row)
            here = sa.and_(devices.c.fleet == self._fleet, devices.c.name == device.name)
            key = connection.execute(sa.select(devices.c.public_key).where(here)).scalar()
            if key is not None and key.strip() != device.public_key.strip():
                raise SettingsError(
                    f"device {device.name!r} is enrolled with another key",
                    advice="Choose another name, or remove the device first: edgekit device remove ID",
                )
            if key is not None and now >= code.expires:
                raise RefusedError(f"enrollment code {code.token} has expired", advice="Ask for a new code.")
            self._add(connection, issued)
            if key is not None:
                return False
            check_use(code, device.name, device.target, now)
            connection.execute(join_codes.update().where(mine).values(left=code.left - 1))
            values = {**msgspec.structs.asdict(device), "labels": to_json(code.labels)}
            connection.execute(devices.insert().values(fleet=self._fleet, **values))
            again = sa.and_(removed_devices.c.fleet == self._fleet, removed_devices.c.name == device.name)
            connection.execute(removed_devices.delete().where(again))
            put_labels(connection, self._fleet, device.name, code.labels)
            after = {"target": device.target, "labels": code.labels, "code": token, "certificate": issued.serial}
            record(connection, self._fleet, self._author, "device.join", device.name, now=now, after=after)
        return True

    def _add(self, connection: sa.Connection, issued: Issued) -> None:
        values = {"name": issued.name, "serial": issued.serial, "issued": issued.issued, "expires": issued.expires}
        connection.execute(certificates.insert().values(fleet=self._fleet, **values, revoked=0.0))
        after = {"serial": issued.serial, "expires": issued.expires}
        record(connection, self._fleet, self._author, "certificate.issue", issued.name, now=issued.issued, after=after)


def _read_code(row: sa.RowMapping) -> StoredCode:
    labels = msgspec.json.decode(row["labels"], type=dict[str, str])
    fields = {name: row[name] for name in ("token", "key", "expires", "left", "name", "target")}
    return StoredCode(**fields, labels=labels)
