"""Writes a step of the rollout machine: the new state, the changed devices, and the changes of assignments."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from edgekit.errors import DataError
from edgekit.rollout.values import UNDECIDED, Assign, DeviceState, Keep, Rollout, RolloutStep
from edgekit.state._sql import put, to_json
from edgekit.state.assignments import assign, assigned_entries
from edgekit.state.rollout_rows import entry_of
from edgekit.state.tables import rollout_devices, rollouts
from edgekit.trust.assignment import Entry

_ENTRY = msgspec.json.Decoder(Entry)  # built at import, as in edgekit.state.rollout_rows

log = logging.getLogger(__name__)


def save_step(
    connection: sa.Connection, fleet: str, before: Rollout, step: RolloutStep, entries: Mapping[str, Entry], now: float
) -> Rollout:
    """Store the result of a step inside the caller's transaction.

    Args:
        connection: The transaction.
        fleet: Name of the fleet.
        before: The rollout before the step; of an ended one, with some of its devices only.
        step: The result.
        entries: The rollout's assignment entries by target.
        now: Wall clock seconds.

    Returns:
        The rollout as it was stored. A device whose stored assignment cannot be read has failed.
    """
    after = step.state
    if after == before and not step.effects:
        connection.execute(rollouts.update().where(rollouts.c.id == after.id).values(wake_at=step.wake_at))
        return after
    devices = dict(after.devices)
    _put_devices(connection, after, before)
    for effect in step.effects:
        try:
            if isinstance(effect, Assign):
                _assign(connection, fleet, after, effect.device, entries)
            elif isinstance(effect, Keep):
                _keep(connection, fleet, after, effect.device, entries)
            else:
                _revert(connection, fleet, after, effect.device)
        except DataError as error:
            log.warning("rollout %d: %s: %s", after.id, effect.device, error)
            failed = {"state": DeviceState.FAILED, "reason": str(error), "at": now}
            devices[effect.device] = msgspec.structs.replace(devices[effect.device], **failed)
    stored = msgspec.structs.replace(after, devices=devices)
    _put_devices(connection, stored, after)
    values = {
        "state": after.state.value,
        "revision": rollouts.c.revision + 1,
        "updated": now,
        "wake_at": step.wake_at,
        "body": to_json(msgspec.structs.replace(after, devices={})),
        "undecided": _undecided(after.id) if after.ended else 0,
    }
    connection.execute(rollouts.update().where(rollouts.c.id == after.id).values(**values))
    return stored


def _put_devices(connection: sa.Connection, after: Rollout, before: Rollout) -> None:
    for name, progress in after.devices.items():
        if before.devices.get(name) != progress:
            row = {"state": progress.state.value, "progress": to_json(progress)}
            put(connection, rollout_devices, {"rollout": after.id, "device": name}, row)


def _undecided(number: int) -> sa.ScalarSelect[int]:
    states = [state.value for state in UNDECIDED]
    mine = sa.and_(rollout_devices.c.rollout == number, rollout_devices.c.state.in_(states))
    return sa.select(sa.func.count()).select_from(rollout_devices).where(mine).scalar_subquery()


def _assign(connection: sa.Connection, fleet: str, rollout: Rollout, device: str, entries: Mapping[str, Entry]) -> None:
    entry = entry_of(entries, rollout.devices[device].digest)
    if entry is None:
        raise DataError("the rollout has no bundle with the digest of this device")
    previous = assign(connection, fleet, device, rollout.model, entry)
    mine = sa.and_(rollout_devices.c.rollout == rollout.id, rollout_devices.c.device == device)
    connection.execute(rollout_devices.update().where(mine).values(previous=to_json(previous) if previous else None))


def _revert(connection: sa.Connection, fleet: str, rollout: Rollout, device: str) -> None:
    assign(connection, fleet, device, rollout.model, _previous(connection, rollout, device))


def _keep(connection: sa.Connection, fleet: str, rollout: Rollout, device: str, entries: Mapping[str, Entry]) -> None:
    """Assign the bundle that runs, where the abort has restored the entry before it and nobody changed it since."""
    current = assigned_entries(connection, fleet, device).get(rollout.model)
    entry = entry_of(entries, rollout.devices[device].digest)
    if entry is not None and current == _previous(connection, rollout, device):
        assign(connection, fleet, device, rollout.model, entry)


def _previous(connection: sa.Connection, rollout: Rollout, device: str) -> Entry | None:
    query = sa.select(rollout_devices.c.previous).where(
        rollout_devices.c.rollout == rollout.id, rollout_devices.c.device == device
    )
    text = connection.execute(query).scalar()
    try:
        return _ENTRY.decode(text) if text else None
    except msgspec.MsgspecError as error:
        raise DataError(f"the entry before this rollout cannot be read: {error}") from error
