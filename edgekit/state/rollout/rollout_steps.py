"""Writes a step of the rollout machine: the new state, the changed devices, and the changes of assignments."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from edgekit.errors import DataError
from edgekit.rollout.values import (
    UNASSIGNED,
    UNDECIDED,
    Aborted,
    Approved,
    Assign,
    Cancelled,
    DeviceState,
    Forced,
    Keep,
    Paused,
    Resumed,
    Retried,
    Return,
    Revert,
    Rollout,
    RolloutEvent,
    RolloutStep,
    Started,
    Surveyed,
)
from edgekit.state._sql import put_all, to_json
from edgekit.state.rollout.assignments import assign, assigned_entries, uninstalled
from edgekit.state.rollout.rollout_rows import entry_of
from edgekit.state.tables import rollout_devices, rollouts
from edgekit.trust.assignment import Entry

_ENTRY = msgspec.json.Decoder(Entry)  # built at import, as in edgekit.state.rollout.rollout_rows

_WORDS: dict[type, str] = {
    Paused: "pause",
    Resumed: "resume",
    Aborted: "abort",
    Approved: "approve",
    Retried: "retry",
    Forced: "force",
    Cancelled: "cancel",
}

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
                progress = before.devices.get(effect.device)
                again = progress is not None and progress.state not in UNASSIGNED
                _assign(connection, fleet, after, effect.device, entries, again=again)
            elif isinstance(effect, Keep):
                _keep(connection, fleet, after, effect.device, entries)
            else:
                _revert(connection, fleet, after, effect.device, downgrade=isinstance(effect, Return))
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


class AuditedChange(NamedTuple):
    """A change of a rollout for the audit log: its name, and the states before and after."""

    what: str
    states: dict[str, Any]


def audited_change(
    before: Rollout, event: RolloutEvent, step: RolloutStep, entries: Mapping[str, Entry]
) -> AuditedChange | None:
    """The change that a step made for the fleet; None for a survey that assigns nothing and decides nothing.

    Args:
        before: The rollout before the step.
        event: What happened.
        step: The result.
        entries: The rollout's assignment entries by target.
    """
    after = step.state
    state = {**_state(after), **_effects(step)}
    if isinstance(event, Started):
        plan = {
            **msgspec.structs.asdict(after.plan),
            "waves": [wave.text for wave in after.plan.waves],
            "gates": [gate.text for gate in after.plan.gates],
            "canaries": after.plan.canaries.text if after.plan.canaries else "",
        }
        bundles = {target: entry.sha256 for target, entry in entries.items()}
        made = {"model": after.model, "version": after.version, "devices": after.cohort.text or "all"}
        return AuditedChange("rollout.start", {"after": {**made, "bundles": bundles, "plan": plan}})
    if not isinstance(event, Surveyed):
        word = _WORDS[type(event)]
    elif after.state is not before.state:
        word = after.state.value.lower()
    elif step.effects:
        word = "keep" if after.ended else "assign"
    else:
        return None
    return AuditedChange(f"rollout.{word}", {"before": _state(before), "after": state})


def _state(rollout: Rollout) -> dict[str, Any]:
    state = {"state": rollout.state.value, "wave": rollout.wave + 1, "reason": rollout.reason}
    return {key: value for key, value in state.items() if value}


def _effects(step: RolloutStep) -> dict[str, list[str]]:
    words = {Assign: "assigned", Revert: "reverted", Return: "returned", Keep: "kept"}
    found: dict[str, list[str]] = {}
    for effect in step.effects:
        found.setdefault(words[type(effect)], []).append(effect.device)
    return found


def _put_devices(connection: sa.Connection, after: Rollout, before: Rollout) -> None:
    rows = [
        {"rollout": after.id, "device": name, "state": progress.state.value, "progress": to_json(progress)}
        for name, progress in after.devices.items()
        if before.devices.get(name) != progress
    ]
    put_all(connection, rollout_devices, ("rollout", "device"), rows)


def _undecided(number: int) -> sa.ScalarSelect[int]:
    states = [state.value for state in UNDECIDED]
    mine = sa.and_(rollout_devices.c.rollout == number, rollout_devices.c.state.in_(states))
    return sa.select(sa.func.count()).select_from(rollout_devices).where(mine).scalar_subquery()


def _assign(
    connection: sa.Connection, fleet: str, rollout: Rollout, device: str, entries: Mapping[str, Entry], *, again: bool
) -> None:
    entry = entry_of(entries, rollout.devices[device].digest)
    if entry is None:
        raise DataError("the rollout has no bundle with the digest of this device")
    if rollout.devices[device].shadowing:
        plan = rollout.plan
        entry = msgspec.structs.replace(entry, shadow=plan.shadow, shadow_seconds=math.ceil(plan.shadow_seconds))
    previous = assign(connection, fleet, device, rollout.model, entry)
    if again:
        return  # the entry before the rollout is noted
    mine = sa.and_(rollout_devices.c.rollout == rollout.id, rollout_devices.c.device == device)
    connection.execute(rollout_devices.update().where(mine).values(previous=to_json(previous) if previous else None))


def _revert(connection: sa.Connection, fleet: str, rollout: Rollout, device: str, *, downgrade: bool) -> None:
    previous = _previous(connection, rollout, device)
    if previous is not None and downgrade:
        previous = msgspec.structs.replace(previous, downgrade=True)
    assign(connection, fleet, device, rollout.model, previous)


def _keep(connection: sa.Connection, fleet: str, rollout: Rollout, device: str, entries: Mapping[str, Entry]) -> None:
    """Assign the bundle that runs, where the abort has restored the entry before it and nobody changed it since."""
    if rollout.model in uninstalled(connection, fleet, device):
        return
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
