"""The open connections of one HTTP server, and what they share: the application, limits, known heads."""

from __future__ import annotations

import asyncio
from typing import Protocol

from edgekit.serving.http.head_cache import HeadCache
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.messages import Application


class OpenConnection(Protocol):
    """A connection as its registry sees it."""

    deadline: float  # of the event loop's clock; `late` is called after it

    @property
    def idle(self) -> bool:
        """True while no request is being read or answered."""
        ...

    @property
    def age(self) -> tuple[bool, float]:
        """Sorts connections by who may be closed first: those that never sent a request, then the oldest."""
        ...

    def leave(self) -> None:
        """Close to make room for another connection."""
        ...

    def close(self) -> None:
        """Close when what is written has been sent."""
        ...

    def give_up(self) -> None:
        """Answer the present request with 503, and close."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def late(self, now: float) -> None:
        """A time limit has passed."""
        ...


class Connections:
    """The open connections of a server, and what they share.

    Attributes:
        app: Makes the answers.
        limits: Sizes, times and numbers.
        connections: Open connections.
        draining: True while the server stops: each connection closes after its next answer.
        buffered_bytes: Bytes of request bodies that are not answered yet, over all connections.
        max_buffered_bytes: The limit of `buffered_bytes`.
        heads, heads_over_tcp: Known heads of requests over the UNIX socket and over TCP, which get different answers.
    """

    def __init__(self, app: Application, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self.loop = asyncio.get_running_loop()
        self.connections: set[OpenConnection] = set()
        self.draining = False
        self.buffered_bytes = 0
        self.max_buffered_bytes = limits.buffered_bodies * app.max_request_bytes
        self.heads, self.heads_over_tcp = (HeadCache(limits.cached_head_bytes) for _ in range(2))
        self.empty = asyncio.Event()
        self.empty.set()
        self._sweeper: asyncio.TimerHandle | None = None

    def add(self, connection: OpenConnection) -> None:
        """Register a new connection; deadlines are checked while there is one."""
        self.connections.add(connection)
        self.empty.clear()
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self.limits.sweep_seconds, self._sweep)

    def discard(self, connection: OpenConnection) -> None:
        """Forget a connection that is closed."""
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()

    def drain(self) -> None:
        """Close idle connections now, and the others after their next answer. New requests are refused by the app."""
        self.draining = True
        self.app.stop()
        for heads in (self.heads, self.heads_over_tcp):
            heads.clear()
        for connection in list(self.connections):
            if connection.idle:
                connection.close()

    def give_up(self) -> None:
        """Answer with 503 what is not answered yet, and close."""
        for connection in list(self.connections):
            connection.give_up()

    def abort(self) -> None:
        """Close every connection at once, whatever it is doing."""
        for connection in list(self.connections):
            connection.abort()

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in [one for one in self.connections if one.deadline < now]:
            connection.late(now)
        self._sweeper = self.loop.call_later(self.limits.sweep_seconds, self._sweep) if self.connections else None
