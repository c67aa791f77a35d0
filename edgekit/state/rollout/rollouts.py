"""Tables of rollouts. A step of the machine, its new state and its changes of assignments are one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edgekit.bounds import MAX_ROW
from edgekit.errors import NotFoundError, RefusedError
from edgekit.rollout.agent_needs import can_shadow
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.document import RolloutDocument, document
from edgekit.rollout.machine import step
from edgekit.rollout.plan import RolloutPlan
from edgekit.rollout.values import (
    UNASSIGNED,
    UNDECIDED,
    DeviceProgress,
    DeviceState,
    DeviceStatus,
    Forced,
    Rollout,
    RolloutEvent,
    RolloutState,
    Started,
    Surveyed,
)
from edgekit.state._sql import FleetTable, to_json
from edgekit.state.audit import record, take_turn
from edgekit.state.fleet.devices import read_report
from edgekit.state.fleet.filters import cohort_condition, may_change
from edgekit.state.rollout.rollout_rows import read_progress, read_rollout
from edgekit.state.rollout.rollout_steps import audited_change, save_step
from edgekit.state.rollout.silence import explain_silence
from edgekit.state.tables import devices, reports, rollout_devices, rollouts
from edgekit.trust.assignment import Entry

DEFAULT_PLAN = RolloutPlan()
ALL_DEVICES = Cohort()
ACTIVE = (RolloutState.RUNNING.value, RolloutState.PAUSED.value)
ENDED = (RolloutState.FINISHED.value, RolloutState.ABORTED.value)
WATCH_SECONDS = 3600.0  # so long after the end of a rollout, a success that is rolled back is noticed


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
    """The rollouts of one fleet.

    Args:
        engine, fleet, author: As `FleetTable`.
        offline_after_seconds: A device that sent nothing for this long is offline, for filters.
    """

    def __init__(
        self, engine: sa.Engine, fleet: str, *, author: str = "unknown", offline_after_seconds: float = 90.0
    ) -> None:
        super().__init__(engine, fleet, author=author)
        self._offline_after = offline_after_seconds

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
        entries = {target: _conditioned(entry, plan) for target, entry in entries.items()}
        with self._writing() as connection:
            take_turn(connection)  # of two operators who start a rollout of the model at once, one is refused
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
            return self._save(connection, draft, Started(), entries, now)

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

    def counted(self, number: int) -> tuple[Rollout, RolloutDocument]:
        """A rollout without its devices, and its document with the numbers of them.

        Raises:
            NotFoundError: there is no such rollout.
        """
        found = self._counted(limit=1, before=min(number, MAX_ROW) + 1)
        if not found or found[0][0].id != number:
            raise _no_rollout(number, self._fleet)
        return found[0]

    def documents(self, *, limit: int | None = None, before: int | None = None) -> list[RolloutDocument]:
        """Rollouts without their devices, which are only counted, the newest first.

        Args:
            limit: Number of rollouts; None for all.
            before: Only rollouts with a lower number, for the next page.
        """
        return [described for _, described in self._counted(limit, before)]

    def _counted(self, limit: int | None, before: int | None) -> list[tuple[Rollout, RolloutDocument]]:
        query = sa.select(rollouts).where(rollouts.c.fleet == self._fleet).order_by(rollouts.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(rollouts.c.id < before)
        progress = rollout_devices.c.progress
        changed = sa.and_(progress.contains('"verdict":"'), sa.not_(progress.contains('"verdict":"SUCCEEDED"')))
        succeeded = rollout_devices.c.state == DeviceState.SUCCEEDED.value
        counted = (
            sa.select(
                rollout_devices.c.rollout,
                rollout_devices.c.state,
                sa.func.count().label("devices"),
                sa.func.sum(sa.case((sa.and_(succeeded, changed), 1), else_=0)).label("late"),
            )
            .where(rollout_devices.c.rollout.in_(query.with_only_columns(rollouts.c.id).subquery().select()))
            .group_by(rollout_devices.c.rollout, rollout_devices.c.state)
        )
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
            found: dict[int, dict[str, int]] = {}
            late: dict[int, int] = {}
            for row in connection.execute(counted):
                found.setdefault(row.rollout, {})[row.state] = row.devices
                late[row.rollout] = late.get(row.rollout, 0) + row.late
        read = [read_rollout(row, ())[0] for row in rows]
        return [(one, document(one, counts=found.get(one.id, {}), late=late.get(one.id, 0))) for one in read]

    def members(
        self, number: int, *, state: DeviceState | None = None, after: str = "", limit: int = 100
    ) -> list[tuple[str, DeviceProgress]]:
        """Devices of a rollout by name, one page of them.

        Args:
            number: Number of the rollout.
            state: Only devices in this state.
            after: Only devices whose names come after this one.
            limit: Number of devices.
        """
        columns = rollout_devices.c
        query = (
            sa.select(columns.device, columns.progress)
            .join(rollouts, rollouts.c.id == columns.rollout)
            .where(rollouts.c.fleet == self._fleet, columns.rollout == min(number, MAX_ROW), columns.device > after)
            .order_by(columns.device)
            .limit(limit)
        )
        if state is not None:
            query = query.where(columns.state == state.value)
        with self._reading() as connection:
            return [(row.device, read_progress(row.progress)[0]) for row in connection.execute(query)]

    def revision(self, number: int) -> tuple[int, bool]:
        """A number that rises with every change of a rollout, and whether the rollout has ended.

        Raises:
            NotFoundError: there is no such rollout.
        """
        mine = sa.and_(rollouts.c.fleet == self._fleet, rollouts.c.id == min(number, MAX_ROW))
        with self._reading() as connection:
            row = connection.execute(sa.select(rollouts.c.revision, rollouts.c.state).where(mine)).first()
        if row is None:
            raise _no_rollout(number, self._fleet)
        return row.revision, row.state in ENDED

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
            return self._save(connection, rollout, event, entries, now)

    def survey(self, number: int, now: float, since: float = 0.0) -> Rollout:
        """As `survey_changes`, without saying whether it changed anything."""
        return self.survey_changes(number, now, since)[0]

    def survey_changes(self, number: int, now: float, since: float = 0.0) -> tuple[Rollout, bool]:
        """Survey the cohort's devices that enrolled or reported since `since` (wall clock seconds), and step.

        Returns:
            The rollout, and True where its revision has risen by one.
        """
        with self._writing() as connection:
            rollout, entries = self._load(connection, number, lock=True)
            statuses = {} if rollout.fault else self._statuses(connection, rollout, entries, now, since)
            stored = self._save(connection, rollout, Surveyed(statuses), entries, now)
            return stored, stored is not rollout and stored != rollout

    def watch_ended(self, now: float, since: float) -> list[int]:
        """Note what devices of ended rollouts reported since `since` (wall clock seconds): late successes, for example.

        Returns:
            The rollouts whose devices changed.
        """
        with self._reading() as connection:
            values = {"of_fleet": self._fleet, "since": since, "watched": now - WATCH_SECONDS}
            found = connection.execute(_REPORTED_LATE, values).all()
        changed = []
        for number in sorted({row.rollout for row in found}):
            bodies = {row.device: row.body for row in found if row.rollout == number}
            with self._writing() as connection:
                rollout, entries = self._load(connection, number, lock=True, only=list(bodies))
                statuses = {
                    name: _status(rollout.model, progress.digest, bodies[name])
                    for name, progress in rollout.devices.items()
                }
                if self._save(connection, rollout, Surveyed(statuses), entries, now) != rollout:
                    changed.append(number)
        return changed

    def missing_targets(self, number: int, now: float) -> list[str]:
        """Targets of the cohort's devices for which the rollout has no bundle, at `now` (wall clock seconds)."""
        with self._reading() as connection:
            rollout, entries = self._load(connection, number, only=())
            if rollout.fault:
                return []
            mine = cohort_condition(rollout.cohort, now, self._offline_after)
            query = sa.select(devices.c.target).where(devices.c.fleet == self._fleet, mine).distinct()
            return sorted(set(connection.execute(query).scalars()) - set(entries))

    def add_entry(self, number: int, target: str, entry: Entry, now: float) -> None:
        """Add the bundle for one more target; devices that were skipped because of it become pending.

        Args:
            number: Number of the rollout.
            target, entry: The target and its bundle.
            now: Wall clock seconds.
        """
        with self._writing() as connection:
            rollout, entries = self._load(connection, number, lock=True)
            downgrade = any(one.downgrade for one in entries.values())  # --downgrade holds for the whole rollout
            entry = msgspec.structs.replace(_conditioned(entry, rollout.plan), downgrade=downgrade)
            values = {"entries": to_json({**entries, target: entry}), "revision": rollouts.c.revision + 1}
            connection.execute(rollouts.update().where(rollouts.c.id == number).values(**values))
            state = {"target": target, "version": entry.version, "digest": entry.sha256}
            record(connection, self._fleet, self._author, "rollout.bundle", number, now=now, after=state)

    def _save(
        self, connection: sa.Connection, rollout: Rollout, event: RolloutEvent, entries: Mapping[str, Entry], now: float
    ) -> Rollout:
        """Apply an event, store the result, and note the change in the audit log."""
        result = step(rollout, event, now)
        explained = explain_silence(connection, self._fleet, rollout, result.state)
        result = msgspec.structs.replace(result, state=explained)
        if isinstance(event, Forced):
            entries = {target: _conditioned(entry, result.state.plan) for target, entry in entries.items()}
            connection.execute(rollouts.update().where(rollouts.c.id == rollout.id).values(entries=to_json(entries)))
        stored = save_step(connection, self._fleet, rollout, result, entries, now)
        if change := audited_change(rollout, event, result, entries):
            record(connection, self._fleet, self._author, change.what, rollout.id, now=now, **change.states)
        return stored

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

    def _load(
        self, connection: sa.Connection, number: int, *, lock: bool = False, only: Sequence[str] | None = None
    ) -> tuple[Rollout, dict[str, Entry]]:
        """A rollout and its entries; with `only`, with these of its devices."""
        query = sa.select(rollouts).where(rollouts.c.fleet == self._fleet, rollouts.c.id == min(number, MAX_ROW + 1))
        row = connection.execute(query.with_for_update() if lock else query).mappings().first()
        if row is None:
            raise _no_rollout(number, self._fleet)
        members = (
            sa.select(rollout_devices.c.device, rollout_devices.c.progress)
            .where(rollout_devices.c.rollout == number)
            .order_by(rollout_devices.c.device)
        )
        if only is not None:
            members = members.where(rollout_devices.c.device.in_(only))
        return read_rollout(row, [(one.device, one.progress) for one in connection.execute(members)])

    def _statuses(
        self, connection: sa.Connection, rollout: Rollout, entries: Mapping[str, Entry], now: float, since: float
    ) -> dict[str, DeviceStatus]:
        """Reports of the devices in the rollout, and of those that its cohort selects now."""
        member = sa.and_(rollout_devices.c.rollout == rollout.id, rollout_devices.c.device == devices.c.name)
        query = (
            sa.select(devices.c.name, devices.c.target, reports.c.body, *self._preferred(rollout, now))
            .outerjoin(reports, (reports.c.fleet == devices.c.fleet) & (reports.c.device == devices.c.name))
            .where(devices.c.fleet == self._fleet, may_change())
            .where(sa.or_(devices.c.enrolled >= since, reports.c.received >= since))
        )
        selected = cohort_condition(rollout.cohort, now, self._offline_after)
        if rollout.cohort.filter:  # what a device runs may change; who is in the rollout stays in it
            joined = sa.select(rollout_devices.c.device).where(member).correlate(devices).exists()
            selected = sa.or_(selected, joined)
        statuses = {}
        for row in connection.execute(query.where(selected)):
            entry = entries.get(row.target)
            statuses[row.name] = _status(
                rollout.model, entry.sha256 if entry else "", row.body, canary=bool(row.canary), chosen=row.chosen
            )
        return statuses

    def _preferred(self, rollout: Rollout, now: float) -> tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]]:
        """Whether a device is one of the plan's canaries, and the first wave whose filter it matches, as columns."""
        plan = rollout.plan
        canary = sa.false() if plan.canaries is None else cohort_condition(plan.canaries, now, self._offline_after)
        cohorts = [wave.cohort for wave in plan.waves if wave.cohort is not None]
        matches = [(cohort_condition(one, now, self._offline_after), index) for index, one in enumerate(cohorts)]
        chosen = sa.case(*matches, else_=None) if matches else sa.null()
        return canary.label("canary"), chosen.label("chosen")


def _no_rollout(number: int, fleet: str) -> NotFoundError:
    return NotFoundError(f"there is no rollout {number} in fleet {fleet!r}", advice="See: edgekit rollout list")


def _conditioned(entry: Entry, plan: RolloutPlan) -> Entry:
    """The entry with the conditions that the plan sets for devices."""
    return msgspec.structs.replace(entry, consent=plan.consent, window=plan.window)


def _status(
    model: str, digest: str, body: str | None, *, canary: bool = False, chosen: int | None = None
) -> DeviceStatus:
    report = read_report(body)
    return DeviceStatus(
        digest=digest,
        running=report.models.get(model) if report else None,
        outcome=report.outcomes.get(model) if report else None,
        canary=canary,
        chosen=chosen,
        can_shadow=can_shadow(str(report.facts.get("edgekit", ""))) if report else False,
    )


def _reported_late() -> sa.Select[tuple[int, str, str]]:
    """Rollout, device and report of devices that reported since `since`, in rollouts that ended before.

    A device that a later rollout of the model reached belongs to that one. A rollout that was changed after `watched`
    has ended just now.
    """
    later_rollout, later_device = rollouts.alias(), rollout_devices.alias()
    reached_again = (
        sa.select(later_device.c.device)
        .join(later_rollout, later_rollout.c.id == later_device.c.rollout)
        .where(
            later_rollout.c.fleet == rollouts.c.fleet,
            later_rollout.c.model == rollouts.c.model,
            later_rollout.c.id > rollouts.c.id,
            later_device.c.device == rollout_devices.c.device,
            later_device.c.state.not_in([state.value for state in UNASSIGNED]),
        )
        .exists()
    )
    undecided = rollout_devices.c.state.in_([state.value for state in UNDECIDED])
    just_ended = sa.and_(rollouts.c.updated >= sa.bindparam("watched"), rollout_devices.c.state == "SUCCEEDED")
    return (
        sa.select(rollout_devices.c.rollout, rollout_devices.c.device, reports.c.body)
        .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
        .join(reports, (reports.c.fleet == rollouts.c.fleet) & (reports.c.device == rollout_devices.c.device))
        .where(
            rollouts.c.fleet == sa.bindparam("of_fleet"),
            rollouts.c.state.in_(ENDED),
            reports.c.received >= sa.bindparam("since"),
        )
        .where(sa.or_(sa.and_(rollouts.c.undecided > 0, undecided), just_ended))
        .where(~reached_again)
    )


_REPORTED_LATE = _reported_late()  # built at import: building a statement takes longer than running it
