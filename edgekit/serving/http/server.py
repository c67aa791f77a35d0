"""The HTTP server: listens on TCP, on a UNIX socket, or on both, and drains its connections at the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket as sockets
import ssl
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
        url: ``http://host:port`` or ``https://host:port`` with the real port; empty without TCP.
        socket: Path of the UNIX socket, or None.
    """

    url: str
    socket: Path | None


@contextlib.asynccontextmanager
async def serve(
    app: Application,
    *,
    http: str = "",
    socket: Path | None = None,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Bound]:
    """Serve `app` until the block ends, then let accepted requests finish (up to `Limits.drain_seconds`).

    Meanwhile the server says that it is not ready and refuses new inference requests with 503. What is not answered at
    the end of that time gets 503 too.

    Args:
        app: Makes the answers.
        http: ``host:port``; port 0 takes any free one; empty for no TCP.
        socket: Path of a UNIX socket (mode 0660), or None; a socket that a dead server left there is replaced.
        limits: Sizes, times and numbers; the defaults where None.
        tls: For TLS on TCP; None for none. Connections are counted from the end of their handshake.

    Raises:
        SettingsError: an address is malformed.
        UnavailableError: an address is taken, or this process may not bind it.
    """
    limits, loop, registries = limits or Limits(), asyncio.get_running_loop(), list[Connections]()
    with contextlib.ExitStack() as stack:
        listeners = []
        url = ""
        if http:
            tcp = stack.enter_context(_bind_tcp(http))
            listeners.append(tcp)
            url = _url(tcp, "https" if tls else "http")
        if socket is not None:
            listeners.append(stack.enter_context(_bind_unix(socket)))
        servers = []
        for one in listeners:  # each has its own limit, so that nobody on the network shuts out local applications
            registries.append(connections := Connections(app, limits))
            make = functools.partial(Connection, connections)
            secured = tls if one.family != sockets.AF_UNIX else None
            handshake = None if secured is None else limits.handshake_seconds
            servers.append(
                await loop.create_server(make, sock=one, backlog=_BACKLOG, ssl=secured, ssl_handshake_timeout=handshake)
            )
        try:
            yield Bound(url, socket)
        finally:
            await asyncio.shield(_drain(registries, servers, limits))


async def _drain(registries: Sequence[Connections], servers: Sequence[asyncio.AbstractServer], limits: Limits) -> None:
    async def empty(seconds: float | None) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await within(seconds, asyncio.gather(*(one.empty.wait() for one in registries)))

    for one in registries:
        one.drain()
    await empty(limits.drain_seconds)
    for server in servers:  # not before, so that probes see that it is not ready
        server.close()
    for one in registries:
        one.give_up()
    await empty(min(_LAST_SECONDS, limits.linger_seconds))
    for one in registries:
        one.abort()
    await empty(None)


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


def _url(listener: sockets.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


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
