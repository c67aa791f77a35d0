"""The pages for reading: fleet, devices, releases, alarms, audit log, login, and the API's description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

import jinja2
import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from edgekit.controller.operations import Operations
from edgekit.controller.web.access import Visitor, origin_fault
from edgekit.controller.web.api import acting, status_of
from edgekit.controller.web.endpoint import Limit, Number
from edgekit.controller.web.endpoints import AuditQuery, DeviceQuery, FleetPauseBody
from edgekit.controller.web.requests import COOKIE, AccessError, Door, read_body
from edgekit.controller.web.sessions import SESSION_SECONDS
from edgekit.errors import AuthorError, EdgekitError, SettingsError
from edgekit.mqtt.command_arguments import COMMAND_KINDS
from edgekit.state.operators import Role

RECENT_ROLLOUTS = 5
DEVICES_PER_PAGE = 50
ENTRIES_PER_PAGE = 100
MAX_FIELDS = 100
TITLES = {400: "Not valid", 401: "Log in first", 403: "Not allowed", 404: "Not found", 409: "Refused", 503: "Try again"}

Handler = Callable[["Visit"], Response]


class AlarmQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which events: all, or alarms only; those before an id."""

    all: bool = False
    before: Number | None = None
    limit: Limit = ENTRIES_PER_PAGE


class Visit:
    """One request for a page.

    Attributes:
        request: The request.
        visitor: Who makes it.
        operations: What it can read and do, with the visitor's name for the audit log.
        form: The fields of its form; empty without one.
    """

    def __init__(
        self, pages: PageSite, request: Request, visitor: Visitor, operations: Operations, form: dict[str, str]
    ) -> None:
        self.pages, self.request, self.visitor = pages, request, visitor
        self.operations, self.form = operations, form

    def page(self, template: str, here: str = "", *, status: int = 200, **values: Any) -> Response:
        """The page of a template; `here` is its name in the navigation."""
        state = self.operations.state
        shared = {"fleet": state.fleet, "here": here, "visitor": self.visitor, "now": self.operations.now}
        text = self.pages.environment.get_template(template).render(**shared, **values)
        return HTMLResponse(text, status)

    def query(self, kind: type[Any], **defaults: Any) -> Any:
        """The query as `kind`; empty values count as absent.

        Raises:
            SettingsError: it is not valid.
        """
        given = {key: value for key, value in self.request.query_params.items() if value != ""}
        return converted({**defaults, **given}, kind)


def converted(values: dict[str, Any], kind: type[Any]) -> Any:
    """Texts of a form or query as the struct `kind`. Raises SettingsError if they are not valid."""
    try:
        return msgspec.convert(values, kind, strict=False)
    except (msgspec.MsgspecError, ValueError) as error:
        raise SettingsError(f"the form is not valid: {error}") from error


class PageSite:
    """Makes routes of handlers: visitor, role, form, and errors as pages.

    Args:
        operations: What the pages read and do.
        door: Checks the visitors.
        environment: The template engine.
        api: The OpenAPI document, for its page.
    """

    def __init__(
        self, operations: Operations, door: Door, environment: jinja2.Environment, api: dict[str, Any]
    ) -> None:
        self.operations, self.door, self.environment, self.api = operations, door, environment, api

    def route(self, path: str, handle: Handler, *, role: Role | None = Role.VIEWER, method: str = "GET") -> Route:
        """A route.

        Args:
            path: Its path.
            handle: Makes the page; may block.
            role: The least role; None for everyone.
            method: GET, or POST for a form, which must carry the session's value.
        """

        async def answer(request: Request) -> Response:
            try:
                body = await read_body(request) if method == "POST" else b""
                return await run_in_threadpool(self._answer, request, handle, role, body)
            except EdgekitError as error:
                return await run_in_threadpool(self.failure, request, error)

        endpoint: Callable[[Request], Awaitable[Response]] = answer
        return Route(path, endpoint, methods=[method])

    def _answer(self, request: Request, handle: Handler, role: Role | None, body: bytes) -> Response:
        form = _fields(body)
        visitor = self.door.visitor(request)
        if role is not None:
            self.door.check(request, visitor, role, form.get("csrf", ""))
        return handle(Visit(self, request, visitor, acting(self.operations, visitor), form))

    def failure(self, request: Request, error: EdgekitError) -> Response:
        """An error as a page."""
        status = status_of(error)
        visit = Visit(self, request, Visitor(), self.operations, {})
        title = TITLES.get(status, "The controller cannot answer")
        values: dict[str, Any] = {"title": title, "login": status == 401, "fault": str(error), "advice": error.advice}
        return visit.page("error.html", status=status, **values)


def _fields(body: bytes) -> dict[str, str]:
    """The fields of a form. Raises SettingsError if there are more than MAX_FIELDS."""
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError as error:
        raise SettingsError(f"the form has more than {MAX_FIELDS} fields") from error


def page_routes(site: PageSite) -> list[Route]:
    """The routes of the pages in this module."""
    return [
        site.route("/", _fleet),
        site.route("/part", _fleet_part),
        site.route("/fleet/pause", _pause_fleet, role=Role.OPERATOR, method="POST"),
        site.route("/fleet/resume", _resume_fleet, role=Role.OPERATOR, method="POST"),
        site.route("/devices", _devices),
        site.route("/releases", _releases),
        site.route("/alarms", _alarms),
        site.route("/audit", _audit),
        site.route("/docs", _docs, role=None),
        site.route("/login", lambda visit: visit.page("login.html", fault=""), role=None),
        site.route("/login", _login, role=None, method="POST"),
        site.route("/logout", _logout, role=Role.VIEWER, method="POST"),
    ]


def _fleet_values(visit: Visit) -> dict[str, Any]:
    rollouts = visit.operations.state.rollouts.documents(limit=RECENT_ROLLOUTS)
    pause = visit.operations.state.pause.get()
    may_operate = visit.visitor.may(Role.OPERATOR)
    return {"overview": visit.operations.overview(), "rollouts": rollouts, "pause": pause, "may_operate": may_operate}


def _fleet(visit: Visit) -> Response:
    return visit.page("fleet.html", "Fleet", **_fleet_values(visit))


def _fleet_part(visit: Visit) -> Response:
    return visit.page("fleet_part.html", **_fleet_values(visit))


def _pause_fleet(visit: Visit) -> Response:
    visit.operations.pause(True, converted({"reason": visit.form.get("reason", "")}, FleetPauseBody).reason)
    return RedirectResponse("/", 303)


def _resume_fleet(visit: Visit) -> Response:
    visit.operations.pause(False)
    return RedirectResponse("/", 303)


def _devices(visit: Visit) -> Response:
    query: DeviceQuery = visit.query(DeviceQuery, limit=DEVICES_PER_PAGE)
    state = visit.operations.state
    values: dict[str, Any] = {"query": query, "groups": state.groups.all(), "nearest": [], "page": None}
    values |= {"kinds": COMMAND_KINDS, "may_operate": visit.visitor.may(Role.OPERATOR)}
    try:
        page = visit.operations.devices(query.filter, sort=query.sort, offset=query.offset, limit=query.limit)
    except AuthorError as error:
        return visit.page("devices.html", "Devices", status=400, fault=str(error), advice=error.advice, **values)
    if not page.total and query.filter:
        values["nearest"] = state.groups.nearest(visit.operations.cohort(query.filter))
    return visit.page("devices.html", "Devices", fault="", **{**values, "page": page})


def _releases(visit: Visit) -> Response:
    try:
        found = visit.operations.releases()
    except EdgekitError as error:
        fault = {"fault": f"the registry cannot be read: {error}", "advice": error.advice}
        return visit.page("releases.html", "Releases", status=status_of(error), releases=[], **fault)
    return visit.page("releases.html", "Releases", releases=found, fault="", advice="")


def _alarms(visit: Visit) -> Response:
    query: AlarmQuery = visit.query(AlarmQuery)
    events = visit.operations.state.devices.events(None, query.limit, before=query.before, alarms=not query.all)
    found = [] if query.all or query.before else visit.operations.state.alarms.all(limit=query.limit)
    may_operate = visit.visitor.may(Role.OPERATOR)
    return visit.page("alarms.html", "Alarms", query=query, events=events, open_alarms=found, may_operate=may_operate)


def _audit(visit: Visit) -> Response:
    query: AuditQuery = visit.query(AuditQuery)
    entries = visit.operations.state.audit.entries(
        limit=query.limit, before=query.before, what=query.what, subject=query.subject
    )
    return visit.page("audit.html", "Audit", query=query, entries=entries)


def _docs(visit: Visit) -> Response:
    return visit.page("docs.html", "API", document=visit.pages.api)


def _login(visit: Visit) -> Response:
    if fault := origin_fault(visit.request.headers):
        raise AccessError(403, fault)
    cookie = visit.pages.door.login(visit.form.get("token", "").strip())
    if cookie is None:
        return visit.page("login.html", status=401, fault="No operator has this token.")
    response = RedirectResponse("/", 303)
    secure = visit.request.headers.get("x-forwarded-proto", visit.request.url.scheme) == "https"
    response.set_cookie(COOKIE, cookie, int(SESSION_SECONDS), httponly=True, samesite="strict", secure=secure)
    return response


def _logout(visit: Visit) -> Response:
    visit.pages.door.sessions.close(visit.request.cookies.get(COOKIE, ""))
    response = RedirectResponse("/", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
