"""The web application of a controller: API, pages, and static files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from edgekit import __version__
from edgekit.controller.operations import Operations
from edgekit.controller.web.api import api_routes
from edgekit.controller.web.device_pages import device_routes
from edgekit.controller.web.endpoint import PREFIX
from edgekit.controller.web.endpoints import ENDPOINTS
from edgekit.controller.web.metrics import (
    CONTROLLER_METRICS,
    DATABASE,
    MAX_ROLLOUTS,
    Sample,
    controller_samples,
    fleet_samples,
    render_samples,
)
from edgekit.controller.web.openapi import openapi
from edgekit.controller.web.pages import PageSite, Visit, page_routes
from edgekit.controller.web.rendering import FOLDER, environment
from edgekit.controller.web.requests import Door, Guard
from edgekit.controller.web.rollout_pages import rollout_routes
from edgekit.errors import EdgekitError, NotFoundError, UnavailableError
from edgekit.protocols import Clock
from edgekit.serving.http.metrics import METRICS_TYPE

log = logging.getLogger(__name__)


class WebOptions(msgspec.Struct, frozen=True):
    """Options of the web application.

    Attributes:
        hosts: Names of this server, besides those of the loopback.
        free_reads: Requests from this machine may read without a login.
    """

    hosts: Collection[str] = ()
    free_reads: bool = True


def make_app(
    operations: Operations,
    clock: Clock,
    options: WebOptions,
    stopping: asyncio.Event,
    values: Callable[[], Mapping[str, float]] = dict,
) -> ASGIApp:
    """The application.

    Args:
        operations: What API and pages read and do.
        clock: Time of sessions.
        options: Options.
        stopping: Set when the server stops, so that streams end.
        values: The controller's own counters, for the metrics.
    """
    door = Door(operations.state, clock, free_reads=options.free_reads)
    site = PageSite(operations, door, environment(), openapi(ENDPOINTS, __version__))

    def failed(request: Request, error: Exception) -> Response:
        message = getattr(error, "detail", "")
        status = getattr(error, "status_code", 500)
        if status == 500:
            log.error("%s %s failed", request.method, request.url.path, exc_info=error)
            message = "internal error; the controller's log has the reason"
        if request.url.path.startswith((PREFIX, "/openapi")):
            if status in (404, 405):
                message = f"there is no {request.method} {request.url.path}"
            return JSONResponse(
                {"error": message, "advice": "" if status == 500 else "See: /docs"},
                status,
                getattr(error, "headers", None),
            )
        found: EdgekitError = NotFoundError("there is no such page") if status == 404 else EdgekitError(message)
        response = site.failure(request, found)
        response.status_code = status
        return response

    def metrics(visit: Visit) -> Response:
        samples = controller_samples(values())
        try:
            rollouts = operations.state.rollouts.documents(limit=MAX_ROLLOUTS)
            samples += [Sample(DATABASE, (), 1), *fleet_samples(operations.overview(), rollouts)]
        except UnavailableError as error:  # what can be known without the database matters most now
            log.info("metrics of the fleet are left out: %s", error)
            samples.append(Sample(DATABASE, (), 0))
        return Response(render_samples(CONTROLLER_METRICS, samples), media_type=METRICS_TYPE)

    routes = [
        site.route("/metrics", metrics),
        *api_routes(operations, door, __version__),
        *page_routes(site),
        *device_routes(site),
        *rollout_routes(site, stopping),
        Mount("/static", StaticFiles(directory=FOLDER / "static"), name="static"),
    ]
    handlers = {404: failed, 405: failed, 500: failed}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), options.hosts)
