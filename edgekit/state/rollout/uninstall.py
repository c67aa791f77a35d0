"""Takes a model off devices: their assignments say so, and standing assignments do not give it to them again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from edgekit.errors import NotFoundError, RefusedError
from edgekit.rollout.values import DeviceState, RolloutState
from edgekit.state._sql import FleetTable
from edgekit.state.audit import record
from edgekit.state.fleet.devices import read_report
from edgekit.state.rollout.assignments import assign, assigned_entries, uninstalled
from edgekit.state.tables import devices, reports, rollout_devices, rollouts

_ACTIVE = (RolloutState.RUNNING.value, RolloutState.PAUSED.value)
_OUT = (DeviceState.SKIPPED.value, DeviceState.CANCELLED.value)


class Uninstall(msgspec.Struct, frozen=True):
    """A model to take off one device.

    Attributes:
        device, model: The device and the model.
        assigned, running: Versions that are assigned to it and that it reports; empty for none.
        edgekit: Version of its edgekit; empty where it has not reported one.
        asked: True if its assignment says already that it removes the model.
    """

    device: str
    model: str
    assigned: str
    running: str
    edgekit: str
    asked: bool

    @property
    def changes(self) -> bool:
        """True if there is something to remove that its assignment does not remove yet."""
        return not self.asked and bool(self.assigned or self.running)


class UninstallTable(FleetTable):
    """Takes models off the devices of one fleet."""

    def plan(self, model: str, names: Sequence[str]) -> list[Uninstall]:
        """Describe the changes that `run` would make, and make none. Arguments and errors as `run`."""
        with self._reading() as connection:
            return self._plan(connection, model, names)

    def run(self, model: str, names: Sequence[str], now: float) -> list[Uninstall]:
        """Take a model off devices, all or none; a controller then signs and publishes their assignments.

        Args:
            model: Name of the model.
            names: Names of the devices.
            now: Wall clock seconds.

        Raises:
            NotFoundError: a device is not enrolled, or no device has the model.
            RefusedError: a rollout of the model that has not ended includes one of the devices.
            DataError: a stored assignment cannot be read.
        """
        with self._writing() as connection:
            planned = self._plan(connection, model, names)
            for one in planned:
                if one.changes:
                    assign(connection, self._fleet, one.device, model, None, uninstall=True)
                    before = {"model": model, "assigned": one.assigned, "running": one.running}
                    what = "device.uninstall"
                    record(connection, self._fleet, self._author, what, one.device, now=now, before=before)
        return planned

    def _plan(self, connection: sa.Connection, model: str, names: Sequence[str]) -> list[Uninstall]:
        self._check_rollouts(connection, model, names)
        planned = [self._one(connection, model, name) for name in names]
        if not any(one.changes or one.asked for one in planned):
            raise NotFoundError(f"none of the selected devices has model {model!r}", advice="See: edgekit device list")
        return planned

    def _one(self, connection: sa.Connection, model: str, name: str) -> Uninstall:
        query = (
            sa.select(devices.c.name, reports.c.body)
            .outerjoin(reports, (reports.c.fleet == devices.c.fleet) & (reports.c.device == devices.c.name))
            .where(devices.c.fleet == self._fleet, devices.c.name == name)
        )
        row = connection.execute(query).first()
        if row is None:
            raise NotFoundError(
                f"no device {name!r} is enrolled in fleet {self._fleet!r}", advice="See: edgekit device list"
            )
        report, entry = read_report(row.body), assigned_entries(connection, self._fleet, name).get(model)
        running = report.models.get(model) if report else None
        return Uninstall(
            device=name,
            model=model,
            assigned=entry.version if entry else "",
            running=running.version if running else "",
            edgekit=str(report.facts.get("edgekit", "")) if report else "",
            asked=model in uninstalled(connection, self._fleet, name),
        )

    def _check_rollouts(self, connection: sa.Connection, model: str, names: Sequence[str]) -> None:
        query = (
            sa.select(rollouts.c.id, rollouts.c.version, rollouts.c.state, rollout_devices.c.device)
            .join(rollout_devices, rollout_devices.c.rollout == rollouts.c.id)
            .where(rollouts.c.fleet == self._fleet, rollouts.c.model == model, rollouts.c.state.in_(_ACTIVE))
            .where(rollout_devices.c.state.not_in(_OUT))
            .order_by(rollout_devices.c.device)
        )
        chosen = set(names)
        for row in connection.execute(query):
            if row.device in chosen:
                raise RefusedError(
                    f"rollout {row.id} of {model} {row.version} is {row.state} and includes {row.device}",
                    advice=f"Let it finish, or run: edgekit rollout abort {row.id}. To take out one device only: "
                    f"edgekit rollout cancel {row.id} {row.device}",
                )
