"""The endpoints of remote commands and their results."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.bounds import MAX_INTEGER
from edgekit.controller.commanding import CommandRequest, PlannedCommand
from edgekit.controller.operations import Name, Text
from edgekit.controller.web.endpoint import Call, Endpoint, Limit, NameOrNone, NamePath
from edgekit.mqtt.command_arguments import COMMAND_KINDS
from edgekit.state import StoredCommand
from edgekit.state.operators import Role


class CommandQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which commands: of one device, of one kind, the one with this number of one device, and how many."""

    device: NameOrNone = ""
    kind: Annotated[str, Meta(pattern=f"^({'|'.join(COMMAND_KINDS)})?$")] = ""
    number: Annotated[int, Meta(ge=1, le=MAX_INTEGER)] | None = None
    limit: Limit = 100


class SelectedCommandBody(CommandRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A command for all devices that `filter`, `targets` and `labels` select; at least one of them is given."""

    filter: Text = ""
    targets: Annotated[list[Name], Meta(max_length=100)] = msgspec.field(default_factory=list)
    labels: Annotated[dict[Text, Text], Meta(max_length=100)] = msgspec.field(default_factory=dict)


def _list(call: Call) -> list[StoredCommand]:
    query: CommandQuery = call.query
    return call.operations.commands(query.device, kind=query.kind or None, number=query.number, limit=query.limit)


def _plan(call: Call) -> list[PlannedCommand]:
    body: SelectedCommandBody = call.body
    return call.operations.plan_commands(body, body.filter, body.targets, body.labels).commands


def _send(call: Call) -> list[StoredCommand]:
    body: SelectedCommandBody = call.body
    return call.operations.send_commands(body, body.filter, body.targets, body.labels)


COMMANDS = (
    Endpoint("GET", "/commands", "listCommands", "The newest remote commands, and the devices' answers.",
             list[StoredCommand], _list, role=Role.OPERATOR, query=CommandQuery),
    Endpoint("POST", "/commands/plan", "planCommand", "Who would get a command; sends nothing.", list[PlannedCommand],
             _plan, body=SelectedCommandBody),
    Endpoint("POST", "/commands", "sendCommand", "Send a signed command to all devices that are selected.",
             list[StoredCommand], _send, role=Role.OPERATOR, body=SelectedCommandBody, status=201),
    Endpoint("POST", "/devices/{name}/commands", "sendDeviceCommand", "Send a signed command to one device.",
             StoredCommand, lambda call: call.operations.send_command(call.path.name, call.body), role=Role.OPERATOR,
             parameters=NamePath, body=CommandRequest, status=201),
)  # fmt: skip
