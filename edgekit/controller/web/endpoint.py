"""The form of an endpoint of the API, and the parts of requests that several endpoints share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from edgekit.bounds import MAX_ROW
from edgekit.bundle.manifest import NAME_PATTERN
from edgekit.controller.operations import Name, Operations
from edgekit.state.operators import Role
from edgekit.state.tables import MAX_VALUE

PREFIX = "/api/v1"

NameOrNone = Annotated[str, Meta(pattern=f"^({NAME_PATTERN.pattern})?$")]
Number = Annotated[int, Meta(ge=1, le=MAX_ROW)]
Limit = Annotated[int, Meta(ge=1, le=1000)]
Offset = Annotated[int, Meta(ge=0, le=MAX_ROW)]
Label = Annotated[str, Meta(min_length=1, max_length=MAX_VALUE, pattern="^[^\\u0000]+$")]
Reason = Annotated[str, Meta(min_length=1, max_length=500, pattern="^[^\\u0000]*$")]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class NamePath(msgspec.Struct, frozen=True):
    """A name in the path."""

    name: Name


class NumberPath(msgspec.Struct, frozen=True):
    """A number in the path."""

    number: Number


class LimitQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many."""

    limit: Limit = 100


class ErrorDocument(msgspec.Struct, frozen=True):
    """Every answer with a status of 400 or more: the error, and what to do about it."""

    error: str
    advice: str = ""


class Call(NamedTuple):
    """One request that has passed all checks: the operator's operations, and the decoded parts."""

    operations: Operations
    path: Any
    query: Any
    body: Any


class Endpoint(NamedTuple):
    """One endpoint.

    Attributes:
        method, path: The path is below PREFIX; ``{name}`` and ``{number}`` are fields of `parameters`.
        operation: Its operationId.
        summary: One line for people.
        answer: Type of the answer.
        handle: Makes the answer; may block.
        role: The least role that may call it.
        parameters, query, body: Structs of the path, of the query, and of the JSON body; None for no body.
        status: Status of its success.
    """

    method: str
    path: str
    operation: str
    summary: str
    answer: Any
    handle: Callable[[Call], Any]
    role: Role = Role.VIEWER
    parameters: type[msgspec.Struct] = Nothing
    query: type[msgspec.Struct] = Nothing
    body: type[msgspec.Struct] | None = None
    status: int = 200
