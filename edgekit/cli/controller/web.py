"""Serves the controller's API and pages beside its other work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edgekit.cli.common.console import needs_extra, note
from edgekit.errors import SettingsError, UnavailableError
from edgekit.serving.http.addresses import is_loopback
from edgekit.settings import ControlSettings
from edgekit.waiting import within

if TYPE_CHECKING:
    from edgekit.controller.operations import Operations

RETRY_SECONDS = 1.0  # the address is free as soon as another controller has ended
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  # compared with, not bound


def check_api(settings: ControlSettings) -> None:
    """Raise SettingsError if the setting `api` is not valid."""
    if settings.api:
        parse_api(settings.api)


async def serve_web(
    operations: Operations,
    settings: ControlSettings,
    stop: asyncio.Event,
    values: Callable[[], Mapping[str, float]],
) -> None:
    """Serve API, pages and metrics until `stop` is set; `values` are the controller's own counters.

    A taken address stops no rollout: it is noted on stderr, and tried again until it is free, so that a standby
    controller on the same machine takes it over.
    """
    if not settings.api:
        return
    with needs_extra("controller"):
        from edgekit.clock import SystemClock
        from edgekit.controller.web import WebOptions, make_app, serve
    host, port = parse_api(settings.api)
    names = {name.lower() for name in settings.api_hosts} | ({host} - set(ANY_ADDRESS))
    options = WebOptions(hosts=names, free_reads=not settings.api_login)
    app = make_app(operations, SystemClock(), options, stop, values)
    if not is_loopback(host):
        note(f"the API listens on {settings.api} without TLS; put a proxy in front of it")
    said = ""
    while not stop.is_set():
        try:
            async with serve(app, host, port) as url:
                note(f"API and pages: {url}")
                await stop.wait()
        except UnavailableError as error:
            if str(error) != said:
                note(f"the API is not served: {error}; trying again. {error.advice}")
                said = str(error)
            try:
                await within(RETRY_SECONDS, stop.wait())
            except asyncio.TimeoutError:
                continue


def parse_api(text: str) -> tuple[str, int]:
    """Host and port of the setting `api`.

    Raises:
        SettingsError: it is not of the form host:port.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(f"api is {text!r}, expected host:port", advice="Write for example api = '127.0.0.1:8800'.")
    return host.lower(), int(port)
