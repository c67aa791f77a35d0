"""Rollouts: the machine's state in rows. A step, its state and its effects on assignments are one transaction."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from edgekit.errors import NotFoundError, RefusedError
from edgekit.mqtt.messages import Reported
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.machine import Event, Progress, Rollout, Sight, Started, State, Step, Surveyed, Tell, step
from edgekit.rollout.plan import Plan
from edgekit.state._sql import Part, put, to_json
from edgekit.state.assignments import assign
from edgekit.state.devices import read_device
from edgekit.state.tables import devices, reports, rollout_devices, rollouts
from edgekit.trust.assignment import Entry

DEFAULT_PLAN = Plan()
EVERYBODY = Cohort()
ACTIVE = (State.RUNNING.value, State.PAUSED.value)


class ActiveRollout(msgspec.Struct, frozen=True):
    """A rollout that is running or paused; `revision` rises with every change of it."""

    id: int
    revision: int
    wake_at: float | None


class RolloutTable(Part):
    """The rollouts of one fleet."""

    def start(
        self,
        model: str,
        version: str,
        entries: Mapping[str, Entry],
        *,
        now: float,
        plan: Plan = DEFAULT_PLAN,
        cohort: Cohort = EVERYBODY,
    ) -> Rollout:
        """Create a rollout and start it; a controller tells its devices.

        Args:
            model, version: What to roll out.
            entries: What to assign, by target; devices of other targets are skipped.
            now: Wall clock seconds.
            plan, cohort: How, and to whom.

        Raises:
            RefusedError: another rollout of the model has not ended.
        """
        with self._writing() as connection:
            self._refuse_second(connection, model)
            values = {
                "model": model,
                "version": version,
                "state": State.DRAFT.value,
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
            NotFoundError: there is none.
        """
        with self._reading() as connection:
            return self._load(connection, number)[0]

    def all(self) -> list[Rollout]:
        """Every rollout with its devices, oldest first."""
        with self._reading() as connection:
            query = sa.select(rollouts.c.id).where(rollouts.c.fleet == self._fleet).order_by(rollouts.c.id)
            return [self._load(connection, number)[0] for number in connection.execute(query).scalars().all()]

    def active(self) -> list[ActiveRollout]:
        """Those that are running or paused, without their devices."""
        query = (
            sa.select(rollouts.c.id, rollouts.c.revision, rollouts.c.wake_at)
            .where(rollouts.c.fleet == self._fleet, rollouts.c.state.in_(ACTIVE))
            .order_by(rollouts.c.id)
        )
        with self._reading() as connection:
            return [ActiveRollout(row.id, row.revision, row.wake_at) for row in connection.execute(query)]

    def apply(self, number: int, event: Event, now: float) -> Rollout:
        """Step a rollout by an operator's event.

        Raises:
            NotFoundError: there is no such rollout.
            RefusedError: its state does not allow it.
        """
        with self._writing() as connection:
            rollout, entries = self._load(connection, number, lock=True)
            return self._save(connection, rollout, step(rollout, event, now), entries, now)

    def survey(self, number: int, now: float, since: float = 0.0) -> Rollout:
        """Look at the cohort's devices that enrolled or reported since `since` (wall clock seconds), and step."""
        with self._writing() as connection:
            rollout, entries = self._load(connection, number, lock=True)
            sights = self._sights(connection, rollout, entries, since)
            return self._save(connection, rollout, step(rollout, Surveyed(sights), now), entries, now)

    def missing_targets(self, number: int) -> list[str]:
        """Targets of the cohort's devices for which this rollout has no bundle."""
        with self._reading() as connection:
            rollout, entries = self._load(connection, number)
            query = sa.select(devices).where(devices.c.fleet == self._fleet)
            members = map(read_device, connection.execute(query).mappings().all())
            return sorted({d.target for d in members if rollout.cohort.selects(d) and d.target not in entries})

    def add_entry(self, number: int, target: str, entry: Entry) -> None:
        """Give a rollout the bundle for one more target; devices that were skipped for it become pending."""
        with self._writing() as connection:
            _, entries = self._load(connection, number, lock=True)
            meant = any(one.downgrade for one in entries.values())  # of the whole rollout
            entry = msgspec.structs.replace(entry, downgrade=meant)
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
                f"there is no rollout {number} in fleet {self._fleet!r}", advice="`edgekit rollout list` names them."
            )
        members = connection.execute(
            sa.select(rollout_devices.c.device, rollout_devices.c.progress)
            .where(rollout_devices.c.rollout == number)
            .order_by(rollout_devices.c.device)
        )
        rollout = msgspec.json.decode(row["body"], type=Rollout)
        progress = {member.device: msgspec.json.decode(member.progress, type=Progress) for member in members}
        entries = msgspec.json.decode(row["entries"], type=dict[str, Entry])
        return msgspec.structs.replace(rollout, devices=progress), entries

    def _sights(
        self, connection: sa.Connection, rollout: Rollout, entries: Mapping[str, Entry], since: float
    ) -> dict[str, Sight]:
        query = (
            sa.select(devices, reports.c.body)
            .outerjoin(reports, (reports.c.fleet == devices.c.fleet) & (reports.c.device == devices.c.name))
            .where(devices.c.fleet == self._fleet)
            .where(sa.or_(devices.c.enrolled >= since, reports.c.received >= since))
        )
        sights = {}
        for row in connection.execute(query).mappings():
            device = read_device(row)
            if not rollout.cohort.selects(device):
                continue
            entry = entries.get(device.target)
            report = msgspec.json.decode(row["body"], type=Reported) if row["body"] else None
            sights[device.name] = Sight(
                digest=entry.sha256 if entry else "",
                running=report.models.get(rollout.model) if report else None,
                outcome=report.outcomes.get(rollout.model) if report else None,
            )
        return sights

    def _save(
        self, connection: sa.Connection, before: Rollout, taken: Step, entries: Mapping[str, Entry], now: float
    ) -> Rollout:
        after = taken.state
        if after == before and not taken.effects:
            connection.execute(rollouts.update().where(rollouts.c.id == after.id).values(wake_at=taken.wake_at))
            return after
        values = {
            "state": after.state.value,
            "revision": rollouts.c.revision + 1,
            "updated": now,
            "wake_at": taken.wake_at,
            "body": to_json(msgspec.structs.replace(after, devices={})),
        }
        connection.execute(rollouts.update().where(rollouts.c.id == after.id).values(**values))
        for name, progress in after.devices.items():
            if before.devices.get(name) != progress:
                key = {"rollout": after.id, "device": name}
                row = {"state": progress.state.value, "progress": to_json(progress)}
                put(connection, rollout_devices, key, row)
        for effect in taken.effects:
            if isinstance(effect, Tell):
                self._tell(connection, after, effect.device, entries)
            else:
                self._withdraw(connection, after, effect.device)
        return after

    def _tell(self, connection: sa.Connection, rollout: Rollout, device: str, entries: Mapping[str, Entry]) -> None:
        digest = rollout.devices[device].digest
        entry = next(entry for entry in entries.values() if entry.sha256 == digest)
        previous = assign(connection, self._fleet, device, rollout.model, entry)
        connection.execute(self._member(rollout.id, device).values(previous=to_json(previous) if previous else None))

    def _withdraw(self, connection: sa.Connection, rollout: Rollout, device: str) -> None:
        query = sa.select(rollout_devices.c.previous).where(
            rollout_devices.c.rollout == rollout.id, rollout_devices.c.device == device
        )
        text = connection.execute(query).scalar()
        previous = msgspec.json.decode(text, type=Entry) if text else None
        assign(connection, self._fleet, device, rollout.model, previous)

    def _member(self, number: int, device: str) -> sa.Update:
        return rollout_devices.update().where(rollout_devices.c.rollout == number, rollout_devices.c.device == device)
