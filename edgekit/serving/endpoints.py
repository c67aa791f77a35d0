"""The endpoints of a ModelServer: HTTP on TCP and on a UNIX socket, and gRPC where it is wanted.

This file stands above `http` and `grpc`, because it opens both and neither may import the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgekit.errors import MissingExtraError
from edgekit.serving.api.keys import Keys, one_key
from edgekit.serving.api.model_server import ModelServer
from edgekit.serving.api.tls import ServerTls
from edgekit.serving.http.access_log import LoggedApp
from edgekit.serving.http.app import App, ProbesApp
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.messages import Application
from edgekit.serving.http.server import serve

if TYPE_CHECKING:
    from edgekit.serving.grpc.server import BoundGrpc, GrpcService


class Endpoints(NamedTuple):
    """Addresses of the endpoints; empty or None for an endpoint that is not open.

    Attributes:
        url: HTTP over TCP, ``http://host:port`` with the real port.
        socket: HTTP over this UNIX socket.
        grpc: gRPC over TCP, ``host:port`` with the real port.
        grpc_socket: gRPC over this UNIX socket.
        health: Health and metrics over TCP without TLS and key, ``http://host:port`` with the real port.
    """

    url: str = ""
    socket: Path | None = None
    grpc: str = ""
    grpc_socket: Path | None = None
    health: str = ""

    def __str__(self) -> str:
        named = [self.url, f"unix:{self.socket}" if self.socket and not self.url else ""]
        named += [f"grpc {self.grpc}" if self.grpc else "", f"grpc unix:{self.grpc_socket}" if self.grpc_socket else ""]
        named += [f"health {self.health}" if self.health else ""]
        return ", ".join(name for name in named if name)


@contextlib.asynccontextmanager
async def open_endpoints(
    server: ModelServer,
    wanted: Endpoints,
    *,
    max_request_bytes: int,
    api_key: str = "",
    keys: Keys | None = None,
    local_only: bool = True,
    limits: Limits | None = None,
    tls: ServerTls | None = None,
    access_log: Callable[[bytes], object] | None = None,
) -> AsyncIterator[Endpoints]:
    """Serve until the block ends, then let running requests finish.

    Args:
        server: Runs the models.
        wanted: Addresses to listen on; here `url` and `health` are ``host:port``, and port 0 takes any free one.
        max_request_bytes, api_key, keys, local_only: As for `App`.
        limits: Sizes, times and numbers of connections; the defaults where None.
        tls: For TLS on TCP, of HTTP and gRPC; None for none. The port for health has none.
        access_log: Called with a JSON line for each HTTP request and each gRPC call; None for no log.

    Yields:
        The open endpoints.

    Raises:
        SettingsError: an address is malformed or not allowed.
        UnavailableError: an address is taken, or this process may not bind it.
        MissingExtraError: gRPC is wanted and not installed.
    """
    limits = limits or Limits()
    keys = keys or (Keys(one_key(api_key)) if api_key else None)  # HTTP and gRPC count the same uses
    service = None
    if wanted.grpc or wanted.grpc_socket:
        service = _grpc_service(server, max_request_bytes, keys, access_log, limits.trusted_proxies)
    codes = service.codes if service is not None else None
    app = App(server, max_request_bytes=max_request_bytes, keys=keys, local_only=local_only, grpc_codes=codes)
    async with contextlib.AsyncExitStack() as stack:
        opened = Endpoints()
        if wanted.health:  # closed last, so that probes see until the end that the server is not ready
            probes = serve(ProbesApp(app), http=wanted.health, limits=limits)
            opened = opened._replace(health=(await stack.enter_async_context(probes)).url)
        http, grpc = contextlib.AsyncExitStack(), contextlib.AsyncExitStack()
        stack.push_async_callback(_close_together, http, grpc)
        if service is not None:
            bound = await grpc.enter_async_context(_serve_grpc(service, wanted, limits, tls))
            opened = opened._replace(grpc=bound.address, grpc_socket=bound.socket)
        if wanted.url or wanted.socket:
            served: Application = app
            if access_log is not None:
                served = LoggedApp(app, access_log, owner=app.owner, trusted_proxies=limits.trusted_proxies)
            context = tls.context if tls is not None else None
            listening = serve(served, http=wanted.url, socket=wanted.socket, limits=limits, tls=context)
            serving = await http.enter_async_context(listening)
            opened = opened._replace(url=serving.url, socket=serving.socket)
        yield opened


async def _close_together(*servers: contextlib.AsyncExitStack) -> None:
    """Stop servers at the same time: none accepts requests while another drains, and `drain_seconds` pass once."""
    await asyncio.gather(*(one.aclose() for one in servers))


def _grpc_service(
    server: ModelServer,
    max_request_bytes: int,
    keys: Keys | None,
    access_log: Callable[[bytes], object] | None,
    trusted_proxies: tuple[str, ...],
) -> GrpcService:
    try:
        from edgekit.serving.grpc.server import GrpcService
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "grpc").partition(".")[0], "grpc") from error
    return GrpcService(
        server,
        max_request_bytes=max_request_bytes,
        keys=keys,
        access_log=access_log,
        trusted_proxies=trusted_proxies,
    )


def _serve_grpc(
    service: GrpcService, wanted: Endpoints, limits: Limits, tls: ServerTls | None
) -> contextlib.AbstractAsyncContextManager[BoundGrpc]:
    from edgekit.serving.grpc.server import serve_grpc

    return serve_grpc(
        service, address=wanted.grpc, socket=wanted.grpc_socket, drain_seconds=limits.drain_seconds, tls=tls
    )
