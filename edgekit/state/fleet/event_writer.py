"""Writes events: once each, the newest of each device, and those that a report tells and that did not arrive."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from edgekit.mqtt.messages import Event, Outcome, Reported
from edgekit.state._sql import to_json, untrusted_json, untrusted_text
from edgekit.state.audit import take_turn
from edgekit.state.fleet.attributes import MAX_MODELS
from edgekit.state.tables import events

MAX_STORED_EVENTS = 500
UNKNOWN_DEVICE = "unknown-device"
MAX_TEXT = 2_000
SAME_SECONDS = 5.0  # older agents send the event of a deployment a moment after its end, with the time of sending


def insert_event(
    connection: sa.Connection, fleet: str, event: Event, now: float, *, max_events: int = MAX_STORED_EVENTS
) -> None:
    """Store one event inside the caller's transaction, as `DeviceTable.add_event`; not one that is stored already."""
    untrusted_json(event)
    detail = to_json(event.detail)
    values = {
        "at": now,
        "message": untrusted_text(event.message, MAX_TEXT),
        "detail": detail if len(detail) <= MAX_TEXT else "{}",
        "sent": event.at,
        **{name: untrusted_text(getattr(event, name), 63) for name in ("device", "kind", "model", "error")},
    }
    take_turn(connection)  # ids become visible in their order, so that no reader passes one that comes late
    if connection.execute(_SAME_EVENT, {f"of_{name}": values[name] for name in _NAMED} | {"of_fleet": fleet}).first():
        return
    connection.execute(_NEW_EVENT, {"fleet": fleet, **values})
    if values["kind"] == UNKNOWN_DEVICE:
        connection.execute(_OLD_STRANGERS, {"of_fleet": fleet, "most": max_events})
    else:
        connection.execute(_OLD_EVENTS, {"of_fleet": fleet, "of_device": values["device"], "most": max_events})


def _old_events(similar: sa.ColumnElement[bool]) -> sa.Delete:
    mine = sa.and_(events.c.fleet == sa.bindparam("of_fleet"), similar)
    kept = sa.select(events.c.id).where(mine).order_by(events.c.id.desc()).offset(sa.bindparam("most")).limit(1)
    return events.delete().where(mine, events.c.id <= kept.scalar_subquery())


# Built at import: building a statement takes longer than running it.
_NAMED = ("device", "kind", "model", "sent", "error", "message", "detail")
_SAME_EVENT = (
    sa.select(events.c.id)
    .where(events.c.fleet == sa.bindparam("of_fleet"))
    .where(*(events.c[name] == sa.bindparam(f"of_{name}") for name in _NAMED))
    .limit(1)
)
_NEW_EVENT = events.insert()
_OLD_EVENTS = _old_events(events.c.device == sa.bindparam("of_device"))
_OLD_STRANGERS = _old_events(events.c.kind == UNKNOWN_DEVICE)


def insert_missed(
    connection: sa.Connection, fleet: str, report: Reported, before: str | None, now: float, *, max_events: int
) -> None:
    """Store the events of the deployments that a report says have ended, where the events did not arrive.

    No controller may have been there when they were sent, and an import without a network sends none.

    Args:
        connection: The transaction that stores the report.
        fleet: Name of the fleet.
        report: The report.
        before: The device's report before, as JSON; None without one.
        now: Wall clock seconds.
        max_events: Events to keep for the device.
    """
    known = _outcomes(before)
    for model, outcome in list(report.outcomes.items())[:MAX_MODELS]:
        if known.get(model) == outcome:
            continue
        kind, detail = f"deployment-{outcome.result}", {"version": outcome.version, "digest": outcome.deployment}
        event = Event(report.device, kind, outcome.at, model, outcome.error, outcome.message, detail)
        names = {"of_device": report.device, "of_kind": untrusted_text(kind, 63), "of_model": untrusted_text(model, 63)}
        times = {"low": outcome.at - SAME_SECONDS, "high": outcome.at + SAME_SECONDS}
        values = {"of_fleet": fleet, "of_detail": to_json(detail), **names, **times}
        if connection.execute(_SAME_END, values).first() is None:
            insert_event(connection, fleet, event, now, max_events=max_events)


def _outcomes(body: str | None) -> dict[str, Outcome]:
    try:
        return _OUTCOMES.decode(body).outcomes if body else {}
    except (msgspec.MsgspecError, ValueError):
        return {}


class _Outcomes(msgspec.Struct, frozen=True):
    """The needed part of a stored report."""

    outcomes: dict[str, Outcome] = {}


_OUTCOMES = msgspec.json.Decoder(_Outcomes)  # built at import, as in edgekit.state.fleet.devices
_SAME_END = (
    sa.select(events.c.id)
    .where(events.c.fleet == sa.bindparam("of_fleet"))
    .where(*(events.c[name] == sa.bindparam(f"of_{name}") for name in ("device", "kind", "model")))
    .where(events.c.sent >= sa.bindparam("low"))
    # Later too for the same bundle: a device that refused to go back says again that it runs this one, since its start.
    .where(sa.or_(events.c.sent <= sa.bindparam("high"), events.c.detail == sa.bindparam("of_detail")))
    .limit(1)
)
