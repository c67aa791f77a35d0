"""One device with all that the database knows of it, for `device show`, the API and its page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgekit.health.summary import Summary, summarise
from edgekit.state.fleet.alarms import Alarm
from edgekit.state.fleet.devices import DeviceView, StoredEvent
from edgekit.trust.assignment import Entry

if TYPE_CHECKING:
    from edgekit.state import FleetState

SUMMARY_SECONDS = 86_400.0


class AssignedDocument(msgspec.Struct, frozen=True):
    """A device's assignment: its version, 0 for none, its entries by model, and the models that it removes."""

    version: int
    entries: dict[str, Entry]
    uninstall: tuple[str, ...] = ()


class DeviceDetail(msgspec.Struct, frozen=True):
    """One device: its last report, its assignment, its latest events (the newest first), its last day, open alarms."""

    reported: DeviceView
    assigned: AssignedDocument
    events: list[StoredEvent]
    telemetry: Summary
    alarms: list[Alarm]


def describe_device(state: FleetState, name: str, now: float, events: int = 20) -> DeviceDetail:
    """The device `name` at `now` (wall clock seconds), with its last `events` events.

    Raises:
        NotFoundError: no device with this name is enrolled.
    """
    state.devices.get(name)
    (view,) = state.devices.views(now, state.offline_after_seconds, name)
    assignment = state.assignments.get(name)
    assigned = AssignedDocument(0, {})
    if assignment:
        assigned = AssignedDocument(assignment.version, assignment.entries, assignment.uninstall)
    day = state.telemetry.hours(name, since=now - SUMMARY_SECONDS)
    telemetry = summarise(hour.body.sketches for hour in day)
    return DeviceDetail(view, assigned, state.devices.events(name, events), telemetry, state.alarms.all(name))
