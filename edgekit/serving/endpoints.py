"""The endpoints of a ModelServer: HTTP on TCP and on a UNIX socket, and gRPC where it is wanted.

This file stands above `http` and `grpc`, because it opens both and neither may import the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from edgekit.errors import MissingExtraError
from edgekit.serving.api.model_server import ModelServer
from edgekit.serving.http.app import App
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.server import serve


class Endpoints(NamedTuple):
    """Addresses of the endpoints; empty or None for an endpoint that is not open.

    Attributes:
        url: HTTP over TCP, ``http://host:port`` with the real port.
        socket: HTTP over this UNIX socket.
        grpc: gRPC over TCP, ``host:port`` with the real port.
        grpc_socket: gRPC over this UNIX socket.
    """

    url: str = ""
    socket: Path | None = None
    grpc: str = ""
    grpc_socket: Path | None = None

    def __str__(self) -> str:
        named = [self.url, f"unix:{self.socket}" if self.socket and not self.url else ""]
        named += [f"grpc {self.grpc}" if self.grpc else "", f"grpc unix:{self.grpc_socket}" if self.grpc_socket else ""]
        return ", ".join(name for name in named if name)


@contextlib.asynccontextmanager
async def open_endpoints(
    server: ModelServer,
    wanted: Endpoints,
    *,
    max_request_bytes: int,
    api_key: str = "",
    local_only: bool = True,
    limits: Limits | None = None,
) -> AsyncIterator[Endpoints]:
    """Serve until the block ends, then let running requests finish.

    Args:
        server: Runs the models.
        wanted: Addresses to listen on; here `url` is ``host:port``, and port 0 takes any free one.
        max_request_bytes, api_key, local_only: As for `App`.
        limits: Sizes, times and numbers of connections; the defaults where None.

    Yields:
        The open endpoints.

    Raises:
        SettingsError: an address is malformed or not allowed.
        UnavailableError: an address is taken, or this process may not bind it.
        MissingExtraError: gRPC is wanted and not installed.
    """
    async with contextlib.AsyncExitStack() as stack:
        codes, opened = None, Endpoints()
        if wanted.grpc or wanted.grpc_socket:
            try:
                from edgekit.serving.grpc.server import GrpcService, serve_grpc
            except ModuleNotFoundError as error:
                raise MissingExtraError((error.name or "grpc").partition(".")[0], "grpc") from error
            service = GrpcService(server, max_request_bytes=max_request_bytes, api_key=api_key)
            drain = (limits or Limits()).drain_seconds
            listening = serve_grpc(service, address=wanted.grpc, socket=wanted.grpc_socket, drain_seconds=drain)
            bound = await stack.enter_async_context(listening)
            codes, opened = service.codes, Endpoints(grpc=bound.address, grpc_socket=bound.socket)
        app = App(server, max_request_bytes=max_request_bytes, api_key=api_key, local_only=local_only, grpc_codes=codes)
        if wanted.url or wanted.socket:
            http = await stack.enter_async_context(serve(app, http=wanted.url, socket=wanted.socket, limits=limits))
            opened = opened._replace(url=http.url, socket=http.socket)
        yield opened
