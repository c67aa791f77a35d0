"""Devices by what the plan of a rollout judges, grouped in SQL: equal devices are read and judged once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edgekit.mqtt.messages import Running
from edgekit.rollout.cohort import Cohort
from edgekit.state._sql import FleetTable
from edgekit.state.fleet.devices import assigned_versions, read_report
from edgekit.state.fleet.filters import cohort_condition
from edgekit.state.tables import assignments, devices, reports

MAX_NAMED = 500  # kinds in one condition


class DeviceKind(msgspec.Struct, frozen=True):
    """Devices that a plan does not tell apart.

    Attributes:
        target: Name of their target profile.
        key: Names the kind, together with the target.
        count: Number of devices.
        edgekit: Version of their edgekit; empty before they have reported it.
        facts: Facts of one of them; those in `attributes.JUDGED_FACTS` are those of all.
        running: What they run of the plan's model; None where they have reported nothing.
    """

    target: str
    key: str
    count: int
    edgekit: str = ""
    facts: dict[str, Any] = {}
    running: Running | None = None


class SelectedDevices(FleetTable):
    """The devices that a cohort selects, at one moment.

    Args:
        engine, fleet: As `FleetTable`.
        cohort: The devices.
        now: Wall clock seconds.
        offline_after_seconds: A device that sent nothing for this long is offline.

    Raises:
        SettingsError: the cohort's filter cannot be read, or names a group that is not there.
    """

    def __init__(self, engine: sa.Engine, fleet: str, cohort: Cohort, now: float, offline_after_seconds: float) -> None:
        super().__init__(engine, fleet)
        self._condition = sa.and_(devices.c.fleet == fleet, cohort_condition(cohort, now, offline_after_seconds))

    def count(self) -> int:
        """Number of devices."""
        query = sa.select(sa.func.count()).select_from(devices).where(self._condition)
        with self._reading() as connection:
            return connection.execute(query).scalar() or 0

    def kinds(self, model: str) -> list[DeviceKind]:
        """The kinds of devices, for a plan of this model."""
        members = self._members().subquery()
        size, first = sa.func.count().label("count"), sa.func.min(members.c.name).label("name")
        kind = (members.c.target, members.c.key)
        grouped = sa.select(*kind, size, first).group_by(*kind).subquery()
        query = (
            sa.select(grouped, reports.c.body)
            .outerjoin(reports, (reports.c.fleet == self._fleet) & (reports.c.device == grouped.c.name))
            .order_by(grouped.c.target, grouped.c.key)
        )
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [_kind(row, model) for row in rows]

    def names(self, kinds: Sequence[DeviceKind] | None = None) -> dict[tuple[str, str], list[str]]:
        """Names of the devices of some kinds, or of all, in order, by target and key."""
        if kinds is not None and not kinds:
            return {}
        members = self._members().subquery()
        query = sa.select(members).order_by(members.c.name)
        if kinds is not None and len(kinds) <= MAX_NAMED:
            query = query.where(members.c.key.in_({kind.key for kind in kinds}))
        wanted = None if kinds is None else {(kind.target, kind.key) for kind in kinds}
        found: dict[tuple[str, str], list[str]] = {}
        with self._reading() as connection:
            for row in connection.execute(query):
                if wanted is None or (row.target, row.key) in wanted:
                    found.setdefault((row.target, row.key), []).append(row.name)
        return found

    def assigned(self, model: str) -> set[tuple[str, str]]:
        """Versions of a model that are assigned to them, with the target."""
        query = (
            sa.select(devices.c.target, assignments.c.entries)
            .join(assignments, (assignments.c.fleet == devices.c.fleet) & (assignments.c.device == devices.c.name))
            .where(self._condition)
            .distinct()
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
        versions = ((row.target, (assigned_versions(row.entries) or {}).get(model)) for row in rows)
        return {(version, target) for target, version in versions if version}

    def _members(self) -> sa.Select[Any]:
        """Name, target and key of each device. One that an earlier release stored last is a kind of its own."""
        alone = sa.literal("device ") + devices.c.name
        key = sa.case((reports.c.device.is_(None), ""), (reports.c.traits == "", alone), else_=reports.c.traits)
        return (
            sa.select(devices.c.name, devices.c.target, key.label("key"))
            .outerjoin(reports, (reports.c.fleet == devices.c.fleet) & (reports.c.device == devices.c.name))
            .where(self._condition)
        )


def _kind(row: sa.RowMapping, model: str) -> DeviceKind:
    report = read_report(row["body"])
    if report is None:
        return DeviceKind(row["target"], row["key"], row["count"])
    edgekit = str(report.facts.get("edgekit", ""))
    running = report.models.get(model)
    return DeviceKind(row["target"], row["key"], row["count"], edgekit, report.facts, running)
