"""Adds to the failure of a silent device the last event that it sent: often it says why the device does not follow."""

from __future__ import annotations

import time

import msgspec
import sqlalchemy as sa

from edgekit.rollout.judging import MAX_REASON, SILENT
from edgekit.rollout.values import DeviceState, Rollout
from edgekit.state.tables import events

AT_ONCE = 500
_KINDS = ("assignment-%", "deployment-%")
_GOOD = "deployment-succeeded"


def explain_silence(connection: sa.Connection, fleet: str, before: Rollout, after: Rollout) -> Rollout:
    """`after` with the last event in the reason of each device that this step found to be silent.

    A device sends the event of an assignment that it cannot follow once, so it may be older than the rollout.

    Args:
        connection: The transaction of the step.
        fleet: Name of the fleet.
        before, after: The rollout before and after the step.
    """
    silent = [
        name
        for name, one in after.devices.items()
        if one.state is DeviceState.FAILED
        and one.reason.startswith(SILENT)
        and (name not in before.devices or before.devices[name].state is not DeviceState.FAILED)
    ]
    devices = dict(after.devices)
    for at in range(0, len(silent), AT_ONCE):
        for row in connection.execute(_newest(fleet, after.model, silent[at : at + AT_ONCE])):
            if row.kind == _GOOD:
                continue
            moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(row.at))
            said = ": ".join(part for part in (row.kind, row.error, row.message) if part)
            reason = f"{devices[row.device].reason}; its last event, {moment}: {said}"[:MAX_REASON]
            devices[row.device] = msgspec.structs.replace(devices[row.device], reason=reason)
    return msgspec.structs.replace(after, devices=devices) if silent else after


def _newest(fleet: str, model: str, names: list[str]) -> sa.Select[tuple[str, float, str, str, str]]:
    """The newest event of each device that is about its assignment, or about a deployment of the model."""
    about = sa.or_(*(events.c.kind.like(kind) for kind in _KINDS))
    mine = (events.c.fleet == fleet) & events.c.device.in_(names) & events.c.model.in_(("", model)) & about
    last = sa.select(sa.func.max(events.c.id)).where(mine).group_by(events.c.device)
    return sa.select(events.c.device, events.c.at, events.c.kind, events.c.error, events.c.message).where(
        events.c.id.in_(last)
    )
