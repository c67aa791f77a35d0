"""Standing assignments: what new devices of a cohort get, without a rollout, at the rate that the cohort allows."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from edgekit.bounds import MAX_ROW
from edgekit.errors import DataError, NotFoundError, SettingsError
from edgekit.rollout.allowance import Allowance
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.preflight import refusal
from edgekit.rollout.standing import Standing
from edgekit.rollout.values import DeviceState, RolloutState
from edgekit.state._sql import FleetTable, to_json
from edgekit.state.audit import record, take_turn
from edgekit.state.fleet.devices import read_report
from edgekit.state.fleet.filters import cohort_condition, may_change
from edgekit.state.rollout.assignments import assign, assigned_entries
from edgekit.state.tables import assignments, devices, reports, rollout_devices, rollouts, standing
from edgekit.trust.assignment import Entry

# Built at import, because the first decoding of a type in two threads at once crashes in msgspec 0.22.
_COHORT = msgspec.json.Decoder(Cohort)
_ENTRIES = msgspec.json.Decoder(dict[str, Entry])
_ACTIVE = (RolloutState.RUNNING.value, RolloutState.PAUSED.value)

log = logging.getLogger(__name__)


class StandingTable(FleetTable):
    """The standing assignments of one fleet.

    Args:
        engine, fleet, author: As `FleetTable`.
        offline_after_seconds: A device that sent nothing for this long is offline, for filters.
    """

    def __init__(
        self, engine: sa.Engine, fleet: str, *, author: str = "unknown", offline_after_seconds: float = 90.0
    ) -> None:
        super().__init__(engine, fleet, author=author)
        self._offline_after = offline_after_seconds

    def add(
        self,
        model: str,
        entries: Mapping[str, Entry],
        *,
        now: float,
        version: str = "",
        channel: str = "",
        cohort: Cohort | None = None,
        per_hour: float = 0.0,
    ) -> Standing:
        """Add a standing assignment.

        Args:
            model: Name of the model.
            entries: Assignment entries by target, as they are now.
            now: Wall clock seconds.
            version, channel: One of them: a fixed version, or the newest one of a channel.
            cohort: The devices that get it; None for all.
            per_hour: Devices that get it within an hour; 0 for no limit.

        Raises:
            SettingsError: there is one of this model for the same devices.
        """
        cohort = cohort or Cohort()
        with self._writing() as connection:
            take_turn(connection)  # two operators may add the same at once
            for other in self._all(connection):
                if (other.model, other.cohort) == (model, cohort):
                    raise SettingsError(
                        f"standing assignment {other.id} gives these devices {other.text} already",
                        advice=f"Remove it first: edgekit assign remove {other.id}",
                    )
            values = {
                "model": model,
                "version": version,
                "channel": channel,
                "cohort": to_json(cohort),
                "entries": to_json(dict(entries)),
                "per_hour": per_hour,
                "tokens": Allowance.start(per_hour).tokens,
                "counted": now,
                "created": now,
            }
            result = connection.execute(standing.insert().values(fleet=self._fleet, **values))
            number = int((result.inserted_primary_key or (0,))[0])
            made = self._get(connection, number)
            self._record(connection, "assign.add", number, now, after=made.summary)
        return made

    def remove(self, number: int, now: float) -> Standing:
        """Remove a standing assignment and return it; devices keep what they have.

        Raises:
            NotFoundError: there is no such standing assignment.
        """
        with self._writing() as connection:
            found = self._get(connection, number)
            connection.execute(standing.delete().where(standing.c.id == number))
            self._record(connection, "assign.remove", number, now, before=found.summary)
        return found

    def all(self) -> list[Standing]:
        """All standing assignments, in the order in which they are applied."""
        with self._reading() as connection:
            return self._all(connection)

    def set_entries(self, number: int, entries: Mapping[str, Entry], now: float) -> None:
        """Store the bundles by target, after the registry has changed."""
        with self._writing() as connection:
            before = self._get(connection, number)
            if before.entries != entries:
                connection.execute(
                    standing.update().where(standing.c.id == number).values(entries=to_json(dict(entries)))
                )
                after = self._get(connection, number)
                self._record(connection, "assign.bundles", number, now, before=before.summary, after=after.summary)

    def apply(self, now: float) -> dict[int, list[str]]:
        """Assign the models of all standing assignments to devices that have nothing of them, as many as may be now.

        Devices in a running or paused rollout of the model belong to the rollout. A device that would refuse the
        bundle is left out, and so is one on which an operator has uninstalled the model.

        Returns:
            Names of the devices by the number of the standing assignment.
        """
        given: dict[int, list[str]] = {}
        for one in self.all():
            if not self._candidates_exist(one, now):
                continue
            with self._writing() as connection:
                names = self._apply(connection, self._get(connection, one.id), now)
            if names:
                given[one.id] = names
        return given

    def _candidates_exist(self, one: Standing, now: float) -> bool:
        with self._reading() as connection:
            return connection.execute(self._candidates(one, now).limit(1)).first() is not None

    def _apply(self, connection: sa.Connection, one: Standing, now: float) -> list[str]:
        before = Allowance(one.per_hour, one.tokens, one.counted)
        allowance = before.at(now)
        names: list[str] = []
        for row in connection.execute(self._candidates(one, now)):
            if not allowance.whole:
                break
            entry, report = one.entries[row.target], read_report(row.body)
            running = report.models.get(one.model) if report else None
            try:
                taken = one.model in assigned_entries(connection, self._fleet, row.name)
                if taken or refusal(running, entry, allowed=False):
                    continue
                assign(connection, self._fleet, row.name, one.model, entry)
            except DataError as error:
                log.warning("standing assignment %d: %s: %s", one.id, row.name, error)
                continue
            names.append(row.name)
            allowance = allowance.taken()
        if names or before.is_ahead(now):
            values = {"tokens": allowance.tokens, "counted": allowance.counted}
            connection.execute(standing.update().where(standing.c.id == one.id).values(**values))
        if names:
            self._record(connection, "assign.give", one.id, now, after={**one.summary, "devices": names})
        return names

    def _candidates(self, one: Standing, now: float) -> sa.Select[tuple[str, str, str]]:
        """Name, target and report of the devices that may get the model, in the order of their enrollment."""
        in_rollout = (
            sa.select(rollout_devices.c.device)
            .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
            .where(
                rollouts.c.fleet == self._fleet,
                rollouts.c.model == one.model,
                rollouts.c.state.in_(_ACTIVE),
                rollout_devices.c.device == devices.c.name,
                rollout_devices.c.state != DeviceState.SKIPPED.value,
            )
            .correlate(devices)
            .exists()
        )
        settled = (
            sa.select(assignments.c.device)
            .where(assignments.c.fleet == self._fleet, assignments.c.device == devices.c.name)
            .where(
                assignments.c.entries.contains(f'"{one.model}":{{', autoescape=True)
                | assignments.c.uninstall.contains(f'"{one.model}"', autoescape=True)
            )
            .correlate(devices)
            .exists()
        )
        return (
            sa.select(devices.c.name, devices.c.target, reports.c.body)
            .outerjoin(reports, (reports.c.fleet == devices.c.fleet) & (reports.c.device == devices.c.name))
            .where(devices.c.fleet == self._fleet, devices.c.target.in_(list(one.entries)), may_change())
            .where(cohort_condition(one.cohort, now, self._offline_after), ~in_rollout, ~settled)
            .order_by(devices.c.enrolled, devices.c.name)
        )

    def _all(self, connection: sa.Connection) -> list[Standing]:
        query = sa.select(standing).where(standing.c.fleet == self._fleet).order_by(standing.c.id)
        return [_read(row) for row in connection.execute(query).mappings()]

    def _get(self, connection: sa.Connection, number: int) -> Standing:
        mine = sa.and_(standing.c.fleet == self._fleet, standing.c.id == min(number, MAX_ROW))
        row = connection.execute(sa.select(standing).where(mine).with_for_update()).mappings().first()
        if row is None:
            raise NotFoundError(f"there is no standing assignment {number}", advice="See: edgekit assign list")
        return _read(row)

    def _record(self, connection: sa.Connection, what: str, number: int, now: float, **states: object) -> None:
        record(connection, self._fleet, self._author, what, number, now=now, **states)


def _read(row: sa.RowMapping) -> Standing:
    """The value of a row; one that cannot be read has no bundles, so no device gets anything from it."""
    try:
        cohort, entries = _COHORT.decode(row["cohort"]), _ENTRIES.decode(row["entries"])
    except (msgspec.MsgspecError, ValueError) as error:
        log.warning("standing assignment %d cannot be read: %s", row["id"], error)
        cohort, entries = Cohort(), {}
    return Standing(
        id=row["id"],
        model=row["model"],
        version=row["version"],
        channel=row["channel"],
        cohort=cohort,
        entries=entries,
        per_hour=row["per_hour"],
        tokens=row["tokens"],
        counted=row["counted"],
        created=row["created"],
    )
