"""The table of the API: every endpoint with its role, parameters, body and answer. Routes and OpenAPI come from it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgekit.controller.operations import DevicePage, Name, RolloutRequest, SavedFilter, StandingRequest, Text
from edgekit.controller.planning import Planned
from edgekit.controller.web.admin_endpoints import ADMINISTRATION
from edgekit.controller.web.command_endpoints import COMMANDS
from edgekit.controller.web.endpoint import (
    Call,
    Endpoint,
    Label,
    Limit,
    LimitQuery,
    NameOrNone,
    NamePath,
    Nothing,
    Number,
    NumberPath,
    Offset,
    Reason,
)
from edgekit.registry import CatalogueEntry
from edgekit.rollout.document import RolloutDocument, page_document
from edgekit.rollout.gate_watch import gate_views
from edgekit.rollout.values import Aborted, Approved, Cancelled, Forced, Paused, Resumed, Retried
from edgekit.state import Alarm, AuditEntry, FleetPause, SavedGroup, StoredEvent
from edgekit.state.fleet.alarms import MAX_REASON
from edgekit.state.fleet.detail import DeviceDetail
from edgekit.state.fleet.drift import MAX_KIND
from edgekit.state.operators import Role
from edgekit.state.overview import Overview
from edgekit.state.rollout.uninstall import Uninstall


class DeviceQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices: a filter, `sort` (name, target, enrolled or seen; - before it for the reverse), and the page."""

    filter: Text = ""
    sort: Annotated[str, Meta(pattern="^-?(name|target|enrolled|seen)$")] = "name"
    offset: Offset = 0
    limit: Limit = 100


class EventQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which events: of one device, only those with an error, those before an id, and how many."""

    device: NameOrNone = ""
    alarms: bool = False
    before: Number | None = None
    limit: Limit = 100


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which entries: changes that begin with `what`, of one subject, those before a number, and how many."""

    what: Annotated[str, Meta(max_length=63, pattern="^[a-z.]*$")] = ""
    subject: Annotated[str, Meta(max_length=127, pattern="^[^\\u0000]*$")] = ""
    before: Number | None = None
    limit: Limit = 100


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which rollouts: those with a lower number than `before`, the newest first, and how many."""

    before: Number | None = None
    limit: Limit = 100


class MemberQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices of a rollout: those whose names come after `after`, and how many."""

    after: NameOrNone = ""
    limit: Limit = 100


class ReleaseQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which releases: those of one model."""

    model: NameOrNone = ""


class PauseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a rollout is paused."""

    reason: Reason = Paused().reason


class AbortBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a rollout is aborted."""

    reason: Reason = Aborted().reason


class LabelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Labels to set; null removes one."""

    labels: Annotated[dict[Label, Label | None], Meta(min_length=1, max_length=100)]


class QuarantineBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a device is put into quarantine."""

    reason: Reason


class ModelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model to take off a device."""

    model: Name


class EndAlarmsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which open alarms of a device to end: of one model and of one kind, empty for all; and why."""

    model: NameOrNone = ""
    kind: Annotated[str, Meta(max_length=MAX_KIND, pattern="^[^\\u0000]*$")] = ""
    reason: Annotated[str, Meta(max_length=MAX_REASON, pattern="^[^\\u0000]*$")] = ""


class UninstallBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model to take off the devices that a filter selects; with `dry_run` nothing changes."""

    model: Name
    filter: Annotated[Text, Meta(min_length=1)]
    dry_run: bool = False


class GroupBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group to save: its name, and the filter that it stands for."""

    name: Name
    filter: Annotated[Text, Meta(min_length=1)]


class CancelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which device leaves a rollout."""

    device: Name


class FleetPauseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why the fleet is paused."""

    reason: Annotated[str, Meta(max_length=500, pattern="^[^\\u0000]*$")] = ""


def _devices(call: Call) -> DevicePage:
    query: DeviceQuery = call.query
    return call.operations.devices(query.filter, sort=query.sort, offset=query.offset, limit=query.limit)


def _events(call: Call) -> list[StoredEvent]:
    query: EventQuery = call.query
    return call.operations.state.devices.events(
        query.device or None, query.limit, before=query.before, alarms=query.alarms
    )


def _audit(call: Call) -> list[AuditEntry]:
    query: AuditQuery = call.query
    return call.operations.state.audit.entries(
        limit=query.limit, before=query.before, what=query.what, subject=query.subject
    )


def _rollouts(call: Call) -> list[RolloutDocument]:
    return call.operations.state.rollouts.documents(limit=call.query.limit, before=call.query.before)


def _rollout(call: Call) -> RolloutDocument:
    table, number, query = call.operations.state.rollouts, call.path.number, call.query
    rollout, counted = table.counted(number)
    members = table.members(number, after=query.after, limit=query.limit + 1)
    gates = gate_views(table.get(number)) if rollout.plan.gates else []
    return page_document(counted, members, query.limit, gates)


def _uninstall(call: Call) -> list[Uninstall]:
    return call.operations.uninstall_selected(call.body.model, call.body.filter, dry_run=call.body.dry_run)


def _end_alarms(call: Call) -> list[Alarm]:
    body: EndAlarmsBody = call.body
    return call.operations.end_alarms(call.path.name, body.model, body.kind, body.reason)


def _standing(call: Call) -> list[dict[str, Any]]:
    return [one.summary for one in call.operations.state.standing.all()]


def _remove_standing(call: Call) -> dict[str, Any]:
    return call.operations.state.standing.remove(call.path.number, call.operations.now).summary


ENDPOINTS = (
    Endpoint("GET", "/fleet", "getFleet", "The fleet in numbers: what runs where.", Overview,
             lambda call: call.operations.overview()),
    Endpoint("GET", "/devices", "listDevices", "One page of devices, and how many the filter selects.", DevicePage,
             _devices, query=DeviceQuery),
    Endpoint("GET", "/devices/{name}", "getDevice", "One device: its report, its assignment, its latest events.",
             DeviceDetail, lambda call: call.operations.device(call.path.name), parameters=NamePath),
    Endpoint("POST", "/devices/{name}/labels", "labelDevice", "Set labels of a device, or remove some.",
             dict[str, str], lambda call: call.operations.label(call.path.name, call.body.labels), role=Role.OPERATOR,
             parameters=NamePath, body=LabelBody),
    Endpoint("POST", "/devices/{name}/quarantine", "quarantineDevice", "Stop giving a device anything.", DeviceDetail,
             lambda call: call.operations.quarantine(call.path.name, call.body.reason), role=Role.OPERATOR,
             parameters=NamePath, body=QuarantineBody),
    Endpoint("POST", "/devices/{name}/release", "releaseDevice", "End the quarantine of a device.", DeviceDetail,
             lambda call: call.operations.release(call.path.name), role=Role.OPERATOR, parameters=NamePath,
             body=Nothing),
    Endpoint("POST", "/devices/{name}/uninstall", "uninstallModel", "Take a model off one device.", list[Uninstall],
             lambda call: call.operations.uninstall(call.body.model, [call.path.name]), role=Role.OPERATOR,
             parameters=NamePath, body=ModelBody),
    Endpoint("POST", "/uninstall", "uninstallSelected", "Take a model off all devices that a filter selects.",
             list[Uninstall], _uninstall, role=Role.OPERATOR, body=UninstallBody),
    Endpoint("POST", "/groups", "saveGroup", "Save a filter as a group; one of this name is replaced.", SavedFilter,
             lambda call: call.operations.save_group(call.body.name, call.body.filter), role=Role.OPERATOR,
             body=GroupBody),
    Endpoint("DELETE", "/groups/{name}", "removeGroup", "Remove a group; rollouts that used it keep its filter.",
             SavedGroup, lambda call: call.operations.state.groups.remove(call.path.name, call.operations.now),
             role=Role.OPERATOR, parameters=NamePath),
    Endpoint("GET", "/groups", "listGroups", "The saved groups.", list[SavedGroup],
             lambda call: call.operations.state.groups.all()),
    Endpoint("GET", "/events", "listEvents", "Events of devices, the newest first.", list[StoredEvent], _events,
             query=EventQuery),
    Endpoint("POST", "/devices/{name}/alarms/end", "endAlarms",
             "End open alarms of a device. They are raised again only after what they found has ended by itself.",
             list[Alarm], _end_alarms, role=Role.OPERATOR, parameters=NamePath, body=EndAlarmsBody),
    Endpoint("GET", "/alarms", "listAlarms", "Open alarms, the newest first.", list[Alarm],
             lambda call: call.operations.state.alarms.all(limit=call.query.limit), query=LimitQuery),
    Endpoint("GET", "/audit", "listAudit", "Entries of the audit log, the newest first.", list[AuditEntry], _audit,
             query=AuditQuery),
    Endpoint("GET", "/releases", "listReleases", "The published bundles, verified.", list[CatalogueEntry],
             lambda call: call.operations.releases(call.query.model), query=ReleaseQuery),
    Endpoint("GET", "/rollouts", "listRollouts", "Rollouts without their devices, the newest first.",
             list[RolloutDocument], _rollouts, query=PageQuery),
    Endpoint("GET", "/rollouts/{number}", "getRollout", "One rollout with one page of its devices, by name.",
             RolloutDocument, _rollout, parameters=NumberPath, query=MemberQuery),
    Endpoint("POST", "/rollouts/plan", "planRollout", "What a rollout would do; starts nothing.", Planned,
             lambda call: call.operations.plan(call.body), body=RolloutRequest),
    Endpoint("POST", "/rollouts", "startRollout", "Start a rollout.", RolloutDocument,
             lambda call: call.operations.start(call.body), role=Role.OPERATOR, body=RolloutRequest, status=201),
    Endpoint("POST", "/rollouts/{number}/pause", "pauseRollout", "Assign the version to no more devices.",
             RolloutDocument, lambda call: call.operations.steer(call.path.number, Paused(call.body.reason)),
             role=Role.OPERATOR, parameters=NumberPath, body=PauseBody),
    Endpoint("POST", "/rollouts/{number}/resume", "resumeRollout",
             "Continue a paused rollout; failures up to now no longer count.", RolloutDocument,
             lambda call: call.operations.steer(call.path.number, Resumed()), role=Role.OPERATOR,
             parameters=NumberPath, body=Nothing),
    Endpoint("POST", "/rollouts/{number}/abort", "abortRollout",
             "End a rollout; devices that have not succeeded get their previous assignment back.", RolloutDocument,
             lambda call: call.operations.steer(call.path.number, Aborted(call.body.reason)), role=Role.OPERATOR,
             parameters=NumberPath, body=AbortBody),
    Endpoint("POST", "/rollouts/{number}/approve", "approveRollout", "Let the wave start that waits for an approval.",
             RolloutDocument, lambda call: call.operations.steer(call.path.number, Approved()), role=Role.OPERATOR,
             parameters=NumberPath, body=Nothing),
    Endpoint("POST", "/rollouts/{number}/retry", "retryRollout",
             "Try again on the devices that failed or were not reached.", RolloutDocument,
             lambda call: call.operations.steer(call.path.number, Retried()), role=Role.OPERATOR,
             parameters=NumberPath, body=Nothing),
    Endpoint("POST", "/rollouts/{number}/force", "forceRollout",
             "Let no device wait until its user agrees; quiet hours, metered links and windows hold.", RolloutDocument,
             lambda call: call.operations.steer(call.path.number, Forced()), role=Role.OPERATOR,
             parameters=NumberPath, body=Nothing),
    Endpoint("POST", "/rollouts/{number}/cancel", "cancelDevice",
             "Take one device out of a rollout; it gets its previous assignment back.", RolloutDocument,
             lambda call: call.operations.steer(call.path.number, Cancelled(call.body.device)), role=Role.OPERATOR,
             parameters=NumberPath, body=CancelBody),
    Endpoint("GET", "/fleet/pause", "getPause", "Whether devices of the fleet begin changes.", FleetPause,
             lambda call: call.operations.state.pause.get()),
    Endpoint("POST", "/fleet/pause", "pauseFleet", "Let no device begin a change.", FleetPause,
             lambda call: call.operations.pause(True, call.body.reason), role=Role.OPERATOR, body=FleetPauseBody),
    Endpoint("POST", "/fleet/resume", "resumeFleet", "Let devices begin changes again.", FleetPause,
             lambda call: call.operations.pause(False), role=Role.OPERATOR, body=Nothing),
    Endpoint("GET", "/standing", "listStanding", "The standing assignments, in the order in which they count.",
             list[dict[str, Any]], _standing),
    Endpoint("POST", "/standing", "addStanding", "Add a standing assignment.", dict[str, Any],
             lambda call: call.operations.add_standing(call.body), role=Role.OPERATOR, body=StandingRequest,
             status=201),
    Endpoint("DELETE", "/standing/{number}", "removeStanding", "Remove a standing assignment; devices keep what they "
             "have.", dict[str, Any], _remove_standing, role=Role.OPERATOR, parameters=NumberPath),
    *COMMANDS,
    *ADMINISTRATION,
)  # fmt: skip
