"""Checks of every request before anything else happens: host, size, visitor; and the headers of every answer."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.controller.web.access import Visitor, host_fault, is_local, origin_fault, visitor_of
from edgekit.controller.web.sessions import Sessions
from edgekit.errors import EdgekitError
from edgekit.protocols import Clock
from edgekit.state import FleetState
from edgekit.state.operators import Role
from edgekit.waiting import within

COOKIE = "edgekit_session"
CSRF_HEADER = "x-csrf-token"
MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 20.0

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AccessError(EdgekitError):
    """The visitor may not do this.

    Args:
        status: 401 where a login would help, else 403.
        message, advice: As `EdgekitError`.
    """

    def __init__(self, status: int, message: str, *, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.status = status


class TooLongError(EdgekitError):
    """The body is too long."""


class SlowError(EdgekitError):
    """The body did not arrive."""


class Guard:
    """ASGI middleware: refuses foreign Host headers, and sets the headers of every answer.

    Args:
        app: The application behind it.
        hosts: Names of this server, besides those of the loopback.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        fault = host_fault(Headers(scope=scope).get("host", ""), self._hosts)
        if fault:
            await JSONResponse({"error": fault, "advice": ""}, 403)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


class Door:
    """Finds out who makes a request, and whether the visitor may do what it asks for.

    Args:
        state: The fleet's database, with the operators.
        clock: Time of sessions.
        free_reads: Requests from this machine may read without a login.
    """

    def __init__(self, state: FleetState, clock: Clock, *, free_reads: bool) -> None:
        self._state, self._clock, self._free_reads = state, clock, free_reads
        self.sessions = Sessions()

    def visitor(self, request: Request) -> Visitor:
        """The visitor of a request; blocks.

        Raises:
            AccessError: it carries a token that no operator has.
        """
        local = self._free_reads and is_local(request.client.host if request.client else "", request.headers)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme:
            operator = self._state.operators.find(token.strip()) if scheme.lower() == "bearer" else None
            if operator is None:
                raise AccessError(
                    401,
                    "no operator has this token",
                    advice="Send Authorization: Bearer TOKEN; make a token with: edgekit controller token add NAME",
                )
            return visitor_of(operator, local=local)
        session = self.sessions.get(request.cookies.get(COOKIE, ""), self._clock.monotonic())
        operator = self._state.operators.find(session.token) if session else None
        return visitor_of(operator, local=local, csrf=session.csrf if session and operator else "")

    def login(self, token: str) -> str | None:
        """Open a session; returns the value of its cookie, None if no operator has the token."""
        if self._state.operators.find(token) is None:
            return None
        return self.sessions.open(token, self._clock.monotonic())

    def check(self, request: Request, visitor: Visitor, role: Role, csrf: str | None = None) -> None:
        """Check that the visitor may do what needs `role`.

        Args:
            request: The request.
            visitor: Who makes it.
            role: The least role.
            csrf: The value that a form sent along; None takes it from the header.

        Raises:
            AccessError: the visitor may not, or the request comes from a page of another site.
        """
        if not visitor.may(role):
            if visitor.name:
                raise AccessError(403, f"{visitor.name} has not the role {role.value}, which this needs")
            raise AccessError(
                401,
                f"this needs a login with the role {role.value}",
                advice="Make a token where the database is: edgekit controller token add NAME --role " + role.value,
            )
        if request.method in ("GET", "HEAD"):
            return
        if fault := origin_fault(request.headers):
            raise AccessError(403, fault)
        given = request.headers.get(CSRF_HEADER, "") if csrf is None else csrf
        if visitor.csrf and not secrets.compare_digest(given.encode(), visitor.csrf.encode()):
            raise AccessError(
                403, "the form is not of this session", advice="Load the page again and repeat the action."
            )


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        TooLongError: it has more than MAX_BODY_BYTES.
        SlowError: it does not come, or not within BODY_SECONDS.
    """
    try:
        return await within(BODY_SECONDS, _read_parts(request))
    except asyncio.TimeoutError as error:
        raise SlowError(f"the body did not arrive within {BODY_SECONDS:g} s") from error
    except ClientDisconnect as error:  # nobody reads the answer
        raise SlowError("the connection ended before the body") from error


async def _read_parts(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise TooLongError(f"the body has more than {MAX_BODY_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)
