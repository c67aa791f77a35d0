"""Changes of enrolled devices: remove, a new key, new labels, quarantine. Each is one audited transaction."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from edgekit.errors import NotFoundError, SettingsError
from edgekit.rollout.cohort import Device, check_labels
from edgekit.rollout.values import RolloutState
from edgekit.state._sql import FleetTable, put, to_json, untrusted_text
from edgekit.state.audit import record
from edgekit.state.fleet.attributes import put_labels
from edgekit.state.fleet.commands import ASKED, EXPIRED, SENT
from edgekit.state.fleet.devices import read_device
from edgekit.state.fleet.event_writer import MAX_TEXT
from edgekit.state.tables import (
    alarms,
    assignments,
    attributes,
    commands,
    devices,
    presence,
    removed_devices,
    reports,
    rollout_devices,
    rollouts,
    telemetry_hours,
    telemetry_marks,
)

_ACTIVE = (RolloutState.RUNNING.value, RolloutState.PAUSED.value)


class Refused(msgspec.Struct, frozen=True):
    """A device that gets nothing from the controller.

    Attributes:
        device: Name of the device.
        removed: True if it was removed, false if it is in quarantine.
        reason: Why, for people.
        told: True if it was told since then.
    """

    device: str
    removed: bool
    reason: str
    told: bool


class LifecycleTable(FleetTable):
    """Changes of the enrolled devices of one fleet."""

    def remove(self, name: str, now: float) -> Device:
        """Remove a device with its report, assignment and labels; it leaves running rollouts. Its events stay.

        Raises:
            NotFoundError: no such device is enrolled.
        """
        with self._writing() as connection:
            row = self._row(connection, name)
            device = read_device(row)
            self._leave_rollouts(connection, name)
            for table in (reports, presence, assignments, attributes, telemetry_hours, telemetry_marks, alarms):
                connection.execute(table.delete().where(table.c.fleet == self._fleet, table.c.device == name))
            connection.execute(devices.delete().where(devices.c.fleet == self._fleet, devices.c.name == name))
            key = {"fleet": self._fleet, "name": name}
            put(connection, removed_devices, key, {"public_key": device.public_key, "removed": now, "told": False})
            before = {"target": device.target, "labels": device.labels, "public_key": device.public_key}
            record(connection, self._fleet, self._author, "device.remove", name, now=now, before=before)
        return device

    def rekey(self, name: str, public_key: str, now: float) -> None:
        """Replace a device's public key: what its old key signs is refused from now on.

        Args:
            name: The device.
            public_key: PEM of the new key.
            now: Wall clock seconds.

        Raises:
            NotFoundError: no such device is enrolled.
            SettingsError: it has this key already.
        """
        with self._writing() as connection:
            before = self._row(connection, name)["public_key"]
            if before.strip() == public_key.strip():
                raise SettingsError(f"device {name!r} has this key already", advice="Give the file of a new key.")
            self._change(connection, name, public_key=public_key)
            # The new key's numbers may begin anew: nothing that the old key signed is accepted any more.
            marks = (telemetry_marks, {"session": 0, "number": 0})
            for table, values in ((reports, {"number": 0, "payload": None}), (presence, {"session": 0}), marks):
                mine = sa.and_(table.c.fleet == self._fleet, table.c.device == name)
                connection.execute(table.update().where(mine).values(**values))
            states = {"before": {"public_key": before}, "after": {"public_key": public_key}}
            record(connection, self._fleet, self._author, "device.rekey", name, now=now, **states)

    def label(self, name: str, changes: Mapping[str, str | None], now: float) -> dict[str, str]:
        """Set labels, and remove those whose value is None. Returns the labels.

        Raises:
            NotFoundError: no such device is enrolled, or it has no label that is to be removed.
            SettingsError: a label is not valid.
        """
        check_labels(changes)
        with self._writing() as connection:
            before = read_device(self._row(connection, name)).labels
            missing = [key for key, value in changes.items() if value is None and key not in before]
            if missing:
                known = ", ".join(sorted(before)) or "none"
                raise NotFoundError(f"{name} has no label {', '.join(missing)}; its labels are {known}")
            merged: dict[str, str | None] = {**before, **changes}
            after = {key: value for key, value in merged.items() if value is not None}
            if after != before:
                self._change(connection, name, labels=to_json(after))
                put_labels(connection, self._fleet, name, after)
                states = {"before": {"labels": before}, "after": {"labels": after}}
                record(connection, self._fleet, self._author, "device.label", name, now=now, **states)
        return after

    def quarantine(self, name: str, reason: str, now: float) -> bool:
        """Stop giving a device anything; it leaves running rollouts. False if it is in quarantine already.

        Raises:
            NotFoundError: no such device is enrolled.
        """
        with self._writing() as connection:
            if self._row(connection, name)["quarantined"] is not None:
                return False
            text = untrusted_text(reason, MAX_TEXT)
            self._change(connection, name, quarantined=now, quarantine_reason=text, quarantine_told=False)
            self._leave_rollouts(connection, name)
            after = {"reason": text}
            record(connection, self._fleet, self._author, "device.quarantine", name, now=now, after=after)
        return True

    def release(self, name: str, now: float) -> bool:
        """End a quarantine. False if there is none. Raises as `quarantine`."""
        with self._writing() as connection:
            row = self._row(connection, name)
            if row["quarantined"] is None:
                return False
            self._change(connection, name, quarantined=None, quarantine_reason="")
            mine = sa.and_(assignments.c.fleet == self._fleet, assignments.c.device == name)
            connection.execute(assignments.update().where(mine).values(published=0))
            before = {"reason": row["quarantine_reason"]}
            record(connection, self._fleet, self._author, "device.release", name, now=now, before=before)
        return True

    def refused(self) -> dict[str, Refused]:
        """The removed and quarantined devices by name."""
        gone = sa.select(removed_devices).where(removed_devices.c.fleet == self._fleet)
        held = sa.select(devices).where(devices.c.fleet == self._fleet, devices.c.quarantined.is_not(None))
        with self._reading() as connection:
            found = {
                row["name"]: Refused(row["name"], True, "it was removed from the fleet", row["told"])
                for row in connection.execute(gone).mappings()
            }
            for row in connection.execute(held).mappings():
                reason = row["quarantine_reason"]
                found[row["name"]] = Refused(
                    row["name"], False, f"it is in quarantine: {reason}", row["quarantine_told"]
                )
        return found

    def told(self, name: str) -> None:
        """Record that a removed or quarantined device was told."""
        with self._writing() as connection:
            mine = sa.and_(removed_devices.c.fleet == self._fleet, removed_devices.c.name == name)
            connection.execute(removed_devices.update().where(mine).values(told=True))
            self._change(connection, name, quarantine_told=True)

    def _row(self, connection: sa.Connection, name: str) -> sa.RowMapping:
        query = sa.select(devices).where(devices.c.fleet == self._fleet, devices.c.name == name).with_for_update()
        row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFoundError(
                f"no device {name!r} is enrolled in fleet {self._fleet!r}", advice="See: edgekit device list"
            )
        return row

    def _change(self, connection: sa.Connection, name: str, **values: object) -> None:
        mine = sa.and_(devices.c.fleet == self._fleet, devices.c.name == name)
        connection.execute(devices.update().where(mine).values(**values))

    def _leave_rollouts(self, connection: sa.Connection, name: str) -> None:
        """Take a device out of the rollouts that have not ended, and end the commands that it has not answered."""
        active = sa.select(rollouts.c.id).where(rollouts.c.fleet == self._fleet, rollouts.c.state.in_(_ACTIVE))
        mine = sa.and_(rollout_devices.c.device == name, rollout_devices.c.rollout.in_(active))
        numbers = connection.execute(sa.select(rollout_devices.c.rollout).where(mine)).scalars().all()
        connection.execute(rollout_devices.delete().where(mine))
        changed = rollouts.c.id.in_(numbers)
        connection.execute(rollouts.update().where(changed).values(revision=rollouts.c.revision + 1))
        waiting = sa.and_(
            commands.c.fleet == self._fleet, commands.c.device == name, commands.c.state.in_((ASKED, SENT))
        )
        connection.execute(commands.update().where(waiting).values(state=EXPIRED, message="the device was taken out"))
