"""The endpoints of administrators: end of life of devices, enrollment codes, webhooks, operators."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.bundle.manifest import NAME_PATTERN
from edgekit.controller.administration import NewCode, Removed
from edgekit.controller.web.endpoint import Call, Endpoint, Label, NameOrNone, NamePath, Nothing, NumberPath
from edgekit.state import Operator
from edgekit.state.operators import Role
from edgekit.state.webhooks import Notice, Webhook


class TokenPath(msgspec.Struct, frozen=True):
    """The id of an enrollment code in the path: its middle part."""

    token: Annotated[str, Meta(pattern="^[a-z2-7]{8}$")]


class CodeView(msgspec.Struct, frozen=True):
    """An enrollment code without what proves it; `quota` devices may still use it."""

    token: str
    expires: float
    quota: int
    device: str
    target: str
    labels: dict[str, str]


class CodeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A code to make: for so many devices and hours, and the only name and target that it is for; empty for any."""

    quota: Annotated[int, Meta(ge=1, le=100_000)] = 1
    hours: Annotated[float, Meta(ge=0.01, le=8760)] = 24.0
    device: NameOrNone = ""
    target: Annotated[str, Meta(pattern=f"^({NAME_PATTERN.pattern})?$")] = ""
    labels: Annotated[dict[Label, Label], Meta(max_length=100)] = {}


def _codes(call: Call) -> list[CodeView]:
    found = call.operations.state.certificates.codes(call.operations.now)
    return [CodeView(one.token, one.expires, one.left, one.name, one.target, one.labels) for one in found]


def _make_code(call: Call) -> NewCode:
    body: CodeBody = call.body
    return call.operations.make_code(body.quota, body.hours, body.device, body.target, body.labels)


def _revoke_code(call: Call) -> CodeView:
    one = call.operations.state.certificates.revoke_code(call.path.token, call.operations.now)
    return CodeView(one.token, one.expires, one.left, one.name, one.target, one.labels)


def _remove_webhook(call: Call) -> Nothing:
    call.operations.state.webhooks.remove(call.path.number, call.operations.now)
    return Nothing()


ADMINISTRATION = (
    Endpoint("DELETE", "/devices/{name}", "removeDevice", "Remove a device: it is refused, and leaves its rollouts.",
             Removed, lambda call: call.operations.remove(call.path.name), role=Role.ADMIN, parameters=NamePath),
    Endpoint("GET", "/codes", "listCodes", "The enrollment codes that can still be used.", list[CodeView], _codes,
             role=Role.ADMIN),
    Endpoint("POST", "/codes", "makeCode", "Make an enrollment code; it is shown once.", NewCode, _make_code,
             role=Role.ADMIN, body=CodeBody, status=201),
    Endpoint("DELETE", "/codes/{token}", "revokeCode", "End an enrollment code; devices that it enrolled stay.",
             CodeView, _revoke_code, role=Role.ADMIN, parameters=TokenPath),
    Endpoint("GET", "/webhooks", "listWebhooks", "The receivers, and why their last delivery failed.", list[Webhook],
             lambda call: call.operations.state.webhooks.all(), role=Role.ADMIN),
    Endpoint("DELETE", "/webhooks/{number}", "removeWebhook", "Remove a receiver; it gets nothing more.", Nothing,
             _remove_webhook, role=Role.ADMIN, parameters=NumberPath),
    Endpoint("POST", "/webhooks/{number}/skip", "skipNotice", "Leave out the next notice, which the receiver refuses.",
             Notice, lambda call: call.operations.state.webhooks.skip(call.path.number, call.operations.now),
             role=Role.ADMIN, parameters=NumberPath, body=Nothing),
    Endpoint("GET", "/operators", "listOperators", "Who has a token, and its role.", list[Operator],
             lambda call: call.operations.state.operators.all(), role=Role.ADMIN),
)  # fmt: skip
