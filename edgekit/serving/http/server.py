"""The HTTP server: listens on TCP, on a UNIX socket, or on both, and drains its connections at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from edgekit.errors import UnavailableError
from edgekit.serving.http.addresses import SOCKET_MODE, make_room, parse_address, removed_after
from edgekit.serving.http.connection import Connection
from edgekit.serving.http.connections import Connections
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.messages import Application
from edgekit.waiting import within

_BACKLOG = 512
_LAST_SECONDS = 1.0  # for the last answers to leave


class Bound(NamedTuple):
    """Addresses of a running server.

    Attributes:
        url: ``http://host:port`` with the real port; empty without TCP.
        socket: Path of the UNIX socket, or None.
    """

    url: str
    socket: Path | None


@contextlib.asynccontextmanager
async def serve(
    app: Application, *, http: str = "", socket: Path | None = None, limits: Limits | None = None
) -> AsyncIterator[Bound]:
    """Serve `app` until the block ends, then let accepted requests finish (up to `Limits.drain_seconds`).

    Meanwhile the server says that it is not ready and refuses new inference requests with 503. What is not answered at
    the end of that time gets 503 too.

    Args:
        app: Makes the answers.
        http: ``host:port``; port 0 takes any free one; empty for no TCP.
        socket: Path of a UNIX socket (mode 0660), or None; a socket that a dead server left there is replaced.
        limits: Sizes, times and numbers; the defaults where None.

    Raises:
        SettingsError: an address is malformed.
        UnavailableError: an address is taken, or this process may not bind it.
    """
    connections, loop = Connections(app, limits or Limits()), asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        listeners = []
        url = ""
        if http:
            tcp = stack.enter_context(_bind_tcp(http))
            listeners.append(tcp)
            url = _url(tcp)
        if socket is not None:
            listeners.append(stack.enter_context(_bind_unix(socket)))
        servers = [
            await loop.create_server(lambda: Connection(connections), sock=one, backlog=_BACKLOG) for one in listeners
        ]
        try:
            yield Bound(url, socket)
        finally:
            await asyncio.shield(_drain(connections, servers))


async def _drain(connections: Connections, servers: Sequence[asyncio.AbstractServer]) -> None:
    connections.drain()
    with contextlib.suppress(asyncio.TimeoutError):
        await within(connections.limits.drain_seconds, connections.empty.wait())
    for server in servers:  # not before, so that probes see that it is not ready
        server.close()
    connections.give_up()
    with contextlib.suppress(asyncio.TimeoutError):
        await within(min(_LAST_SECONDS, connections.limits.linger_seconds), connections.empty.wait())
    connections.abort()
    await within(None, connections.empty.wait())


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
            os.chmod(path, SOCKET_MODE)  # before it listens, so that no client connects by a wider mode
        except OSError as error:
            raise UnavailableError(
                f"cannot make the socket {path}: {error.strerror or error}",
                advice="Choose a path in a folder that this user may write to.",
            ) from error
        with removed_after(path):
            yield listener
