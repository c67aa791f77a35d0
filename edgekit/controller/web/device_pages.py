"""The page of one device, and the forms of devices: commands, groups, labels, quarantine, uninstall, alarms."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from edgekit.controller.commanding import CommandRequest
from edgekit.controller.web.charts import hour_charts
from edgekit.controller.web.endpoint import NamePath
from edgekit.controller.web.endpoints import EndAlarmsBody, GroupBody, LabelBody, ModelBody, QuarantineBody
from edgekit.controller.web.pages import PageSite, Visit, converted
from edgekit.errors import SettingsError
from edgekit.mqtt.command_arguments import COLLECT, COMMAND_KINDS, LOGS, PROFILE, SET
from edgekit.state.operators import Role

HISTORY = 100
RECENT_COMMANDS = 10
CHART_SECONDS = 2 * 86_400.0


def device_routes(site: PageSite) -> list[Route]:
    """The routes of the pages in this module."""
    actions = {
        "uninstall": _uninstall,
        "alarms/end": _end_alarms,
        "commands": _send,
        "labels": _label,
        "quarantine": _quarantine,
        "release": _release,
    }
    return [
        site.route("/devices/commands", _send_selected, role=Role.OPERATOR, method="POST"),
        site.route("/devices/groups", _save_group, role=Role.OPERATOR, method="POST"),
        site.route("/devices/{name}", _device),
        *(
            site.route(f"/devices/{{name}}/{path}", handle, role=Role.OPERATOR, method="POST")
            for path, handle in actions.items()
        ),
    ]


def command_of(kind: str, text: str) -> CommandRequest:
    """A command as people write it: its words are those of `edgekit device command`.

    Args:
        kind: The command.
        text: KEY=VALUE... of set; MODEL VERSION of profile; the number of lines of logs, or of samples of collect.

    Raises:
        SettingsError: the words do not fit the command.
    """
    return CommandRequest(kind=converted({"kind": kind}, CommandRequest).kind, args=_arguments(kind, text.split()))


def _arguments(kind: str, words: list[str]) -> dict[str, Any]:
    if kind == SET:
        pairs = [word.partition("=") for word in words]
        if odd := [word for (key, equals, _), word in zip(pairs, words, strict=True) if not (key and equals)]:
            raise SettingsError(f"{odd[0][:60]!r} is not of the form KEY=VALUE", advice="KEY= takes a value back.")
        return {"values": {key: value for key, _, value in pairs}}
    if kind == PROFILE:
        if len(words) != 2:
            raise SettingsError("profile needs a model and its version, for example: digits 1.0.0")
        return {"model": words[0], "version": words[1]}
    counted = {LOGS: "lines", COLLECT: "samples"}.get(kind)
    if words and (counted is None or len(words) > 1 or not words[0].isdecimal() or len(words[0]) > 15):
        takes = f"one number of {counted}" if counted else "no words"
        raise SettingsError(f"{kind} takes {takes}, found {' '.join(words)[:60]!r}")
    return {str(counted): int(words[0])} if words else {}


def _name(visit: Visit) -> str:
    return str(converted(dict(visit.request.path_params), NamePath).name)


def _back(name: str, place: str = "") -> Response:
    return RedirectResponse(f"/devices/{quote(name)}{place}", 303)


def _device(visit: Visit) -> Response:
    name = _name(visit)
    detail = visit.operations.device(name, HISTORY)
    view = detail.reported
    counters = view.telemetry.get("counters")
    now = visit.operations.now
    values: dict[str, Any] = {"commands": [], "kinds": COMMAND_KINDS}
    if may_operate := visit.visitor.may(Role.OPERATOR):
        values["commands"] = visit.operations.commands(name, limit=RECENT_COMMANDS)
    return visit.page(
        "device.html",
        "Devices",
        view=view,
        assigned=detail.assigned,
        events=detail.events,
        names=sorted({*view.models, *view.outcomes, *detail.assigned.entries}),
        may_operate=may_operate,
        counters=counters if isinstance(counters, dict) else {},
        day=detail.telemetry,
        alarms=detail.alarms,
        charts=hour_charts(visit.operations.hours(name, CHART_SECONDS), now - CHART_SECONDS, now),
        **values,
    )


def _uninstall(visit: Visit) -> Response:
    name = _name(visit)
    model = converted({"model": visit.form.get("model", "")}, ModelBody).model
    visit.operations.uninstall(model, [name])
    return _back(name)


def _end_alarms(visit: Visit) -> Response:
    name = _name(visit)
    body = converted({key: visit.form.get(key, "") for key in ("model", "kind", "reason")}, EndAlarmsBody)
    visit.operations.end_alarms(name, body.model, body.kind, body.reason)
    return RedirectResponse("/alarms", 303) if visit.form.get("here") == "alarms" else _back(name)


def _send(visit: Visit) -> Response:
    name = _name(visit)
    visit.operations.send_command(name, command_of(visit.form.get("kind", ""), visit.form.get("words", "")))
    return _back(name, "#commands")


def _send_selected(visit: Visit) -> Response:
    text = visit.form.get("filter", "")
    command = command_of(visit.form.get("kind", ""), visit.form.get("words", ""))
    visit.operations.send_commands(command, text, [], {})
    return RedirectResponse(f"/devices?filter={quote(text)}", 303)


def _save_group(visit: Visit) -> Response:
    body = converted({key: visit.form.get(key, "") for key in ("name", "filter")}, GroupBody)
    visit.operations.save_group(body.name, body.filter)
    return RedirectResponse(f"/devices?filter={quote(f'group({body.name})')}", 303)


def _label(visit: Visit) -> Response:
    name = _name(visit)
    key, value = (visit.form.get(part, "").strip() for part in ("key", "value"))
    visit.operations.label(name, converted({"labels": {key: value or None}}, LabelBody).labels)
    return _back(name)


def _quarantine(visit: Visit) -> Response:
    name = _name(visit)
    visit.operations.quarantine(name, converted({"reason": visit.form.get("reason", "")}, QuarantineBody).reason)
    return _back(name)


def _release(visit: Visit) -> Response:
    name = _name(visit)
    visit.operations.release(name)
    return _back(name)
