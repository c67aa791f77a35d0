"""Numbers of a fleet and its models: counted in SQL, so that it takes about the same time for any fleet."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from edgekit.bundle.order import version_order
from edgekit.state._sql import FleetTable
from edgekit.state.fleet.drift import count_drifting
from edgekit.state.fleet.filters import online_condition
from edgekit.state.leaders import ControllerView
from edgekit.state.tables import attributes, devices, events, presence

RECENT_SECONDS = 86_400.0


class VersionCount(msgspec.Struct, frozen=True):
    """Number of devices that run one version of a model."""

    version: str
    devices: int


class ModelCount(msgspec.Struct, frozen=True):
    """Numbers of devices that have one model, by version and by state.

    Attributes:
        model: Its name.
        versions: Devices by version, the highest first.
        updating: Devices that are updating it.
        waiting: Devices that wait on purpose with it.
        outcomes: Devices by how their last deployment of it ended.
    """

    model: str
    versions: list[VersionCount]
    updating: int
    waiting: int
    outcomes: dict[str, int]


class Overview(msgspec.Struct, frozen=True):
    """A fleet in numbers.

    Attributes:
        fleet: Its name.
        at: Wall clock seconds.
        devices: Enrolled devices.
        online: Of these, connected ones that sent something lately.
        never_seen: Of these, those that never sent anything.
        targets: Devices by target profile.
        models: What runs where, by the model's name.
        alarms: Events with an error in the last day.
        controllers: The controllers, the leader first.
        drifting: Devices with an open alarm of drift.
    """

    fleet: str
    at: float
    devices: int
    online: int
    never_seen: int
    targets: dict[str, int]
    models: list[ModelCount]
    alarms: int
    controllers: list[ControllerView] = []
    drifting: int = 0


class OverviewTable(FleetTable):
    """Counts the devices of one fleet."""

    def count(self, now: float, offline_after_seconds: float) -> Overview:
        """The fleet in numbers.

        Args:
            now: Wall clock seconds.
            offline_after_seconds: A device that sent nothing for this long is offline.
        """
        by_target = (
            sa.select(devices.c.target, sa.func.count().label("devices"))
            .where(devices.c.fleet == self._fleet)
            .group_by(devices.c.target)
            .order_by(devices.c.target)
        )
        online = online_condition(now, offline_after_seconds)
        heard = sa.select(
            sa.func.coalesce(sa.func.sum(sa.case((online, 1), else_=0)), 0).label("online"),
            sa.func.coalesce(sa.func.sum(sa.case((presence.c.seen > 0, 1), else_=0)), 0).label("seen"),
        ).where(presence.c.fleet == self._fleet)  # only enrolled devices have a row
        alarms = (
            sa.select(sa.func.count())
            .select_from(events)
            .where(events.c.fleet == self._fleet, events.c.error != "", events.c.at >= now - RECENT_SECONDS)
        )
        with self._reading() as connection:
            targets = {row.target: row.devices for row in connection.execute(by_target)}
            counts = connection.execute(heard).one()
            models = self._models(connection)
            recent = connection.execute(alarms).scalar() or 0
            drifting = count_drifting(connection, self._fleet)
        return Overview(
            fleet=self._fleet,
            at=now,
            devices=sum(targets.values()),
            online=counts.online,
            never_seen=sum(targets.values()) - counts.seen,
            targets=targets,
            models=models,
            alarms=recent,
            drifting=drifting,
        )

    def _models(self, connection: sa.Connection) -> list[ModelCount]:
        kinds = ("version", "state", "waiting", "outcome")
        query = (
            sa.select(attributes.c.kind, attributes.c.key, attributes.c.value, sa.func.count().label("devices"))
            .where(attributes.c.fleet == self._fleet, attributes.c.kind.in_(kinds))
            .group_by(attributes.c.kind, attributes.c.key, attributes.c.value)
        )
        found: dict[str, dict[str, dict[str, int]]] = {}
        for row in connection.execute(query):
            found.setdefault(row.key, {kind: {} for kind in kinds})[row.kind][row.value] = row.devices
        return [
            ModelCount(
                model=model,
                versions=[
                    VersionCount(version, counts["version"][version])
                    for version in sorted(counts["version"], key=lambda one: (version_order(one), one), reverse=True)
                ],
                updating=counts["state"].get("UPDATING", 0),
                waiting=sum(counts["waiting"].values()),
                outcomes=dict(sorted(counts["outcome"].items())),
            )
            for model, counts in sorted(found.items())
        ]
