"""uvicorn on sockets that are bound here: TCP on one address, and a UNIX socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import uvicorn

from edgekit.errors import UnavailableError
from edgekit.serving.addresses import SOCKET_MODE, make_room, parse_address, removed_after
from edgekit.serving.app import Receive, Scope, Send
from edgekit.serving.protocol import limited


class Application(Protocol):
    """An ASGI application that is told what was refused before it could see it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        ...

    def refused(self, status: int) -> None:
        """Count an HTTP answer that the server itself gave."""
        ...


DRAIN_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
_BACKLOG = 512


class Bound(NamedTuple):
    """Where a server listens.

    Attributes:
        url: ``http://host:port`` with the real port; empty where TCP was not asked for.
        socket: Path of the UNIX socket, or None.
    """

    url: str
    socket: Path | None


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to the program it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


@contextlib.asynccontextmanager
async def serve(app: Application, *, http: str = "", socket: Path | None = None) -> AsyncIterator[Bound]:
    """Serve `app` until the block ends, then let running requests finish (up to DRAIN_SECONDS).

    Args:
        app: The ASGI application.
        http: ``host:port``; port 0 takes any free one; empty for no TCP.
        socket: Path of a UNIX socket (mode 0660), or None; what a dead server left there is replaced.

    Raises:
        SettingsError: an address is malformed.
        UnavailableError: an address is taken or not ours to bind.
    """
    with contextlib.ExitStack() as stack:
        listeners = []
        url = ""
        if http:
            tcp = stack.enter_context(_bind_tcp(http))
            listeners.append(tcp)
            url = _url(tcp)
        if socket is not None:
            listeners.append(stack.enter_context(_bind_unix(socket)))
        server = _Server(_config(app))
        running = asyncio.ensure_future(server.serve(sockets=listeners))
        try:
            await _started(server, running)
            yield Bound(url, socket)
        finally:
            server.should_exit = True
            await running


def _config(app: Application) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",  # it runs in the caller's
        http=limited(app.refused),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


async def _started(server: uvicorn.Server, running: asyncio.Future[None]) -> None:
    while not server.started:
        if running.done():
            running.result()
            raise UnavailableError("the HTTP server ended before it had started")
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def _bind_tcp(address: str) -> Iterator[sockets.socket]:
    host, port = parse_address(address)
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it a small answer waits 40 ms for an ACK.
    with contextlib.closing(sockets.socket(family, sockets.SOCK_STREAM, sockets.IPPROTO_TCP)) as listener:
        listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {address}: {error.strerror or error}", advice="Choose another address or port."
            ) from error
        yield listener


def _url(listener: sockets.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _bind_unix(path: Path) -> Iterator[sockets.socket]:
    make_room(path)
    with contextlib.closing(sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)) as listener:
        try:
            listener.bind(str(path))
            os.chmod(path, SOCKET_MODE)  # before it listens, so that nobody gets in by a wider mode
        except OSError as error:
            raise UnavailableError(f"cannot make the socket {path}: {error.strerror or error}") from error
        with removed_after(path):
            yield listener
