"""Our HTTP connections on sockets that are bound here: TCP on one address, and a UNIX socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from edgekit.errors import UnavailableError
from edgekit.serving.http.addresses import SOCKET_MODE, make_room, parse_address, removed_after
from edgekit.serving.http.connection import Connection
from edgekit.serving.http.connections import Hub
from edgekit.serving.http.messages import Application
from edgekit.waiting import within

DRAIN_SECONDS = 10
_BACKLOG = 512


class Bound(NamedTuple):
    """Where a server listens.

    Attributes:
        url: ``http://host:port`` with the real port; empty where TCP was not asked for.
        socket: Path of the UNIX socket, or None.
    """

    url: str
    socket: Path | None


@contextlib.asynccontextmanager
async def serve(app: Application, *, http: str = "", socket: Path | None = None) -> AsyncIterator[Bound]:
    """Serve `app` until the block ends, then let running requests finish (up to DRAIN_SECONDS).

    Args:
        app: What answers.
        http: ``host:port``; port 0 takes any free one; empty for no TCP.
        socket: Path of a UNIX socket (mode 0660), or None; what a dead server left there is replaced.

    Raises:
        SettingsError: an address is malformed.
        UnavailableError: an address is taken or not ours to bind.
    """
    hub, loop = Hub(app), asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        listeners = []
        url = ""
        if http:
            tcp = stack.enter_context(_bind_tcp(http))
            listeners.append(tcp)
            url = _url(tcp)
        if socket is not None:
            listeners.append(stack.enter_context(_bind_unix(socket)))
        servers = [await loop.create_server(lambda: Connection(hub), sock=one, backlog=_BACKLOG) for one in listeners]
        try:
            yield Bound(url, socket)
        finally:
            for server in servers:
                server.close()
            await asyncio.shield(_drain(hub))


async def _drain(hub: Hub) -> None:
    hub.drain()
    with contextlib.suppress(asyncio.TimeoutError):
        await within(DRAIN_SECONDS, hub.empty.wait())
    hub.abort()
    await within(None, hub.empty.wait())


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
