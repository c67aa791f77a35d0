"""The routes of the API: decodes a request by the table of endpoints, checks the visitor, and encodes the answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgekit.controller.operations import Operations
from edgekit.controller.web.access import Visitor
from edgekit.controller.web.endpoint import PREFIX, Call, Endpoint, ErrorDocument
from edgekit.controller.web.endpoints import ENDPOINTS
from edgekit.controller.web.openapi import openapi
from edgekit.controller.web.requests import AccessError, Door, SlowError, TooLongError, read_body
from edgekit.errors import (
    AuthorError,
    EdgekitError,
    NotFoundError,
    RefusedError,
    UnavailableError,
    VerificationError,
)
from edgekit.state.operators import Role

log = logging.getLogger(__name__)

_STATUSES: tuple[tuple[type[EdgekitError], int], ...] = (
    (TooLongError, 413),
    (SlowError, 408),
    (NotFoundError, 404),
    (AuthorError, 400),
    (RefusedError, 409),
    (VerificationError, 409),
    (UnavailableError, 503),
)


class _BadRequestError(AuthorError):
    """A part of the request cannot be decoded."""


def api_routes(operations: Operations, door: Door, version: str) -> list[Route]:
    """The routes of the API and of its OpenAPI document.

    Args:
        operations: What the endpoints call.
        door: Checks the visitors.
        version: Version of edgekit.
    """
    document = msgspec.json.encode(openapi(ENDPOINTS, version))

    async def openapi_document(request: Request) -> Response:
        return Response(document, media_type="application/json")

    paths: dict[str, list[Endpoint]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, []).append(endpoint)
    ordered = sorted(paths, key=lambda path: "{" in path)  # /rollouts/plan before /rollouts/{number}
    return [
        Route("/openapi.json", openapi_document),
        *(
            Route(
                PREFIX + path.replace("{number}", "{number:int}"),
                _Path(paths[path], operations, door),
                methods=[one.method for one in paths[path]],
            )
            for path in ordered
        ),
    ]


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    if isinstance(error, AccessError):
        return error.status
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def error_response(error: EdgekitError) -> Response:
    """An error as JSON."""
    status = status_of(error)
    if status == 500:
        log.warning("the API could not answer: %s", error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    body = msgspec.json.encode(ErrorDocument(str(error), error.advice))
    return Response(body, status, headers, media_type="application/json")


def acting(operations: Operations, visitor: Visitor) -> Operations:
    """The operations, with the visitor's name for the audit log."""
    return operations.by(f"{visitor.name}@api") if visitor.name else operations


class _Path:
    """All methods of one path, as an ASGI application."""

    def __init__(self, endpoints: Sequence[Endpoint], operations: Operations, door: Door) -> None:
        self._endpoints = {one.method: one for one in endpoints}
        self._operations, self._door = operations, door

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        endpoint = self._endpoints["GET" if request.method == "HEAD" else request.method]
        try:
            body = await read_body(request)
            response = await run_in_threadpool(self._answer, request, endpoint, body)
        except EdgekitError as error:
            response = error_response(error)
        await response(scope, receive, send)

    def _answer(self, request: Request, endpoint: Endpoint, body: bytes) -> Response:
        visitor = self._door.visitor(request)
        self._door.check(request, visitor, endpoint.role)
        call = Call(
            operations=acting(self._operations, visitor) if endpoint.role is not Role.VIEWER else self._operations,
            path=_texts(request.path_params, endpoint.parameters, "path"),
            query=_texts(_single(request), endpoint.query, "query"),
            body=_json(request, endpoint, body),
        )
        return Response(
            msgspec.json.encode(endpoint.handle(call), enc_hook=str), endpoint.status, media_type="application/json"
        )


def _single(request: Request) -> dict[str, str]:
    """The query by name. Raises if a name is repeated."""
    items = request.query_params.multi_items()
    if len(dict(items)) < len(items):
        raise _BadRequestError("a parameter of the query is repeated")
    return dict(items)


def _texts(values: Mapping[str, Any], kind: type[msgspec.Struct], place: str) -> Any:
    try:
        return msgspec.convert(values, kind, strict=False)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _BadRequestError(f"the {place} is not valid: {error}") from error


def _json(request: Request, endpoint: Endpoint, body: bytes) -> Any:
    if endpoint.body is None:
        return None
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise _BadRequestError(f"Content-Type is {media[:60]!r}, expected application/json")
    try:
        found = msgspec.json.decode(body or b"{}", type=endpoint.body)
        json.loads(body or b"{}", object_pairs_hook=_once)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _BadRequestError(f"the body is not valid: {error}") from error
    return found


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Raise ValueError for a name that is repeated: readers differ in which value they take."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:60]!r} is there twice")
