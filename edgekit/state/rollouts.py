"""Tables of rollouts. A step of the machine, its new state and its changes of assignments are one transaction."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from edgekit.errors import NotFoundError, RefusedError
from edgekit.mqtt.messages import Reported
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.machine import (
    Assign,
    DeviceProgress,
    DeviceStatus,
    Rollout,
    RolloutEvent,
    RolloutState,
    RolloutStep,
    Started,
    Surveyed,
    step,
)
from edgekit.rollout.plan import RolloutPlan
from edgekit.state._sql import FleetTable, put, to_json
from edgekit.state.assignments import assign
from edgekit.state.devices import read_device
from edgekit.state.tables import devices, reports, rollout_devices, rollouts
from edgekit.trust.assignment import Entry

# Built at import, because the first decoding of a type in two threads at once crashes in msgspec 0.22.
_ROLLOUT = msgspec.json.Decoder(Rollout)
_PROGRESS = msgspec.json.Decoder(DeviceProgress)
_ENTRY = msgspec.json.Decoder(Entry)
_ENTRIES = msgspec.json.Decoder(dict[str, Entry])

DEFAULT_PLAN = RolloutPlan()
ALL_DEVICES = Cohort()
ACTIVE = (RolloutState.RUNNING.value, RolloutState.PAUSED.value)


class ActiveRollout(msgspec.Struct, frozen=True):
    """A rollout that is running or paused.

    Attributes:
        id: Number of the rollout.
        revision: Rises with every change of the rollout.
        wake_at: Wall clock seconds at which it must be surveyed; None if no deadline runs.
    """

    id: int
    revision: int
    wake_at: float | None


class RolloutTable(FleetTable):
    """The rollouts of one fleet."""

    def start(
        self,
        model: str,
        version: str,
        entries: Mapping[str, Entry],
        *,
        now: float,
        plan: RolloutPlan = DEFAULT_PLAN,
        cohort: Cohort = ALL_DEVICES,
    ) -> Rollout:
        """Create a rollout and start it; a controller then assigns the bundles to devices.

        Args:
            model, version: What to roll out.
            entries: Assignment entries by target; devices of other targets are skipped.
            now: Wall clock seconds.
            plan: Waves and thresholds.
            cohort: The devices that the rollout selects.

        Raises:
            RefusedError: another rollout of the model has not ended.
        """
        with self._writing() as connection:
            self._refuse_second(connection, model)
            values = {
                "model": model,
                "version": version,
                "state": RolloutState.DRAFT.value,
                "revision": 0,
                "created": now,
                "updated": now,
                "body": "{}",
                "entries": to_json(entries),
            }
            result = connection.execute(rollouts.insert().values(fleet=self._fleet, **values))
            number = int((result.inserted_primary_key or (0,))[0])
            draft = Rollout(id=number, model=model, version=version, plan=plan, cohort=cohort)
            return self._save(connection, draft, step(draft, Started(), now), dict(entries), now)

    def get(self, number: int) -> Rollout:
        """One rollout with its devices.

        Raises:
            NotFoundError: there is no such rollout.
        """
        with self._reading() as connection:
            return self._load(connection, number)[0]

    def all(self) -> list[Rollout]:
        """All rollouts with their devices, oldest first."""
        with self._reading() as connection:
            query = sa.select(rollouts.c.id).where(rollouts.c.fleet == self._fleet).order_by(rollouts.c.id)
            return [self._load(connection, number)[0] for number in connection.execute(query).scalars().all()]

    def active(self) -> list[ActiveRollout]:
        """Rollouts that are running or paused, without their devices."""
        query = (
            sa.select(rollouts.c.id, rollouts.c.revision, rollouts.c.wake_at)
            .where(rollouts.c.fleet == self._fleet, rollouts.c.state.in_(ACTIVE))
            .order_by(rollouts.c.id)
        )
        with self._reading() as connection:
            return [ActiveRollout(row.id, row.revision, row.wake_at) for row in connection.execute(query)]

    def apply(self, number: int, event: RolloutEvent, now: float) -> Rollout:
        """Apply an operator's event to a rollout.

        Raises:
            NotFoundError: there is no such rollout.
            RefusedError: its state does not allow the event.
        """
        with self._writing() as connection:
            rollout, entries = self._load(connection, number, lock=True)
            return self._save(connection, rollout, step(rollout, event, now), entries, now)

    def survey(self, number: int, now: float, since: float = 0.0) -> Rollout:
        """Survey the cohort's devices that enrolled or reported since `since` (wall clock seconds), and step."""
        with self._writing() as connection:
            rollout, entries = self._load(connection, number, lock=True)
            statuses = self._statuses(connection, rollout, entries, since)
            return self._save(connection, rollout, step(rollout, Surveyed(statuses), now), entries, now)

    def missing_targets(self, number: int) -> list[str]:
        """Targets of the cohort's devices for which the rollout has no bundle."""
        with self._reading() as connection:
            rollout, entries = self._load(connection, number)
            query = sa.select(devices).where(devices.c.fleet == self._fleet)
            members = map(read_device, connection.execute(query).mappings().all())
            return sorted({d.target for d in members if rollout.cohort.selects(d) and d.target not in entries})

    def add_entry(self, number: int, target: str, entry: Entry) -> None:
        """Add the bundle for one more target; devices that were skipped because of it become pending."""
        with self._writing() as connection:
            _, entries = self._load(connection, number, lock=True)
            downgrade = any(one.downgrade for one in entries.values())  # --downgrade holds for the whole rollout
            entry = msgspec.structs.replace(entry, downgrade=downgrade)
            values = {"entries": to_json({**entries, target: entry}), "revision": rollouts.c.revision + 1}
            connection.execute(rollouts.update().where(rollouts.c.id == number).values(**values))

    def _refuse_second(self, connection: sa.Connection, model: str) -> None:
        query = sa.select(rollouts.c.id, rollouts.c.version, rollouts.c.state).where(
            rollouts.c.fleet == self._fleet, rollouts.c.model == model, rollouts.c.state.in_(ACTIVE)
        )
        other = connection.execute(query).first()
        if other is not None:
            raise RefusedError(
                f"rollout {other.id} of {model} {other.version} is {other.state}; a model has one rollout at a time",
                advice=f"Let it finish, or run: edgekit rollout abort {other.id}",
            )

    def _load(self, connection: sa.Connection, number: int, *, lock: bool = False) -> tuple[Rollout, dict[str, Entry]]:
        query = sa.select(rollouts).where(rollouts.c.fleet == self._fleet, rollouts.c.id == number)
        row = connection.execute(query.with_for_update() if lock else query).mappings().first()
        if row is None:
            raise NotFoundError(
                f"there is no rollout {number} in fleet {self._fleet!r}", advice="See: edgekit rollout list"
            )
        members = connection.execute(
            sa.select(rollout_devices.c.device, rollout_devices.c.progress)
            .where(rollout_devices.c.rollout == number)
            .order_by(rollout_devices.c.device)
        )
        rollout = _ROLLOUT.decode(row["body"])
        progress = {member.device: _PROGRESS.decode(member.progress) for member in members}
        entries = _ENTRIES.decode(row["entries"])
        return msgspec.structs.replace(rollout, devices=progress), entries

    def _statuses(
        self, connection: sa.Connection, rollout: Rollout, entries: Mapping[str, Entry], since: float
    ) -> dict[str, DeviceStatus]:
        query = (
            sa.select(devices, reports.c.body)
            .outerjoin(reports, (reports.c.fleet == devices.c.fleet) & (reports.c.device == devices.c.name))
            .where(devices.c.fleet == self._fleet)
            .where(sa.or_(devices.c.enrolled >= since, reports.c.received >= since))
        )
        statuses = {}
        for row in connection.execute(query).mappings():
            device = read_device(row)
            if not rollout.cohort.selects(device):
                continue
            entry = entries.get(device.target)
            report = msgspec.json.decode(row["body"], type=Reported) if row["body"] else None
            statuses[device.name] = DeviceStatus(
                digest=entry.sha256 if entry else "",
                running=report.models.get(rollout.model) if report else None,
                outcome=report.outcomes.get(rollout.model) if report else None,
            )
        return statuses

    def _save(
        self, connection: sa.Connection, before: Rollout, result: RolloutStep, entries: Mapping[str, Entry], now: float
    ) -> Rollout:
        after = result.state
        if after == before and not result.effects:
            connection.execute(rollouts.update().where(rollouts.c.id == after.id).values(wake_at=result.wake_at))
            return after
        values = {
            "state": after.state.value,
            "revision": rollouts.c.revision + 1,
            "updated": now,
            "wake_at": result.wake_at,
            "body": to_json(msgspec.structs.replace(after, devices={})),
        }
        connection.execute(rollouts.update().where(rollouts.c.id == after.id).values(**values))
        for name, progress in after.devices.items():
            if before.devices.get(name) != progress:
                key = {"rollout": after.id, "device": name}
                row = {"state": progress.state.value, "progress": to_json(progress)}
                put(connection, rollout_devices, key, row)
        for effect in result.effects:
            if isinstance(effect, Assign):
                self._assign(connection, after, effect.device, entries)
            else:
                self._revert(connection, after, effect.device)
        return after

    def _assign(self, connection: sa.Connection, rollout: Rollout, device: str, entries: Mapping[str, Entry]) -> None:
        digest = rollout.devices[device].digest
        entry = next(entry for entry in entries.values() if entry.sha256 == digest)
        previous = assign(connection, self._fleet, device, rollout.model, entry)
        connection.execute(self._member(rollout.id, device).values(previous=to_json(previous) if previous else None))

    def _revert(self, connection: sa.Connection, rollout: Rollout, device: str) -> None:
        query = sa.select(rollout_devices.c.previous).where(
            rollout_devices.c.rollout == rollout.id, rollout_devices.c.device == device
        )
        text = connection.execute(query).scalar()
        previous = _ENTRY.decode(text) if text else None
        assign(connection, self._fleet, device, rollout.model, previous)

    def _member(self, number: int, device: str) -> sa.Update:
        return rollout_devices.update().where(rollout_devices.c.rollout == number, rollout_devices.c.device == device)
