"""The open connections of one HTTP server, and what they share: the application, limits, known heads."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Protocol

from edgekit.serving.http.addresses import is_trusted
from edgekit.serving.http.head_cache import HeadCache
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.messages import Application

IN_USE_SECONDS = 0.25  # after an answer, the next request of a busy client may be on its way
WORKED = 2  # a connection with a request that was let in


class OpenConnection(Protocol):
    """A connection as its registry sees it."""

    deadline: float  # of the event loop's clock; `late` is called after it
    peer: str  # address of the client; empty on a UNIX socket

    @property
    def idle(self) -> bool:
        """True while no request is being read or answered."""
        ...

    @property
    def age(self) -> tuple[int, float]:
        """Its work so far (0 nothing, 1 asked for health or was refused, WORKED), and since when it is idle."""
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


def first_to_close(idle: Sequence[OpenConnection], now: float, limit: int, limits: Limits) -> OpenConnection | None:
    """The idle connection that gives way to a new one; None where all are at work.

    First go those that had time for a request and made none that was let in (silent ones, wrong keys, probes). Then the
    one that a working client has left idle for longest. New ones get their time, unless they are more than a quarter of
    all: a flood of them must not close the connections of working clients.

    Args:
        idle: Connections without a request at present.
        now: The event loop's time.
        limit: The limit that was reached.
        limits: For `fresh_seconds`.
    """
    workless = sorted((one for one in idle if one.age[0] < WORKED), key=lambda one: one.age)
    overdue = [one for one in workless if now - one.age[1] >= limits.fresh_seconds]
    if overdue or len(workless) > max(limit // 4, 1):
        return (overdue or workless)[0]
    worked = min((one for one in idle if one.age[0] >= WORKED), key=lambda one: one.age, default=None)
    return worked or (workless[0] if workless else None)


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

    def make_room(self, peer: str) -> str:
        """Close a connection where a new one from `peer` would be over a limit.

        Returns:
            Why there is no room; empty where there is.
        """
        of_peer = [one for one in self.connections if one.peer == peer] if self._is_limited(peer) else []
        for limit, open_ones, whose in (
            (self.limits.peer_connections, of_peer, f" from {peer}"),
            (self.limits.connections, list(self.connections), ""),
        ):
            if len(open_ones) < limit or not open_ones:
                continue
            chosen = first_to_close([one for one in open_ones if one.idle], self.loop.time(), limit, self.limits)
            if chosen is None:
                return f"all {limit} connections{whose} are at work, which is the limit; try again"
            self.discard(chosen)
            chosen.leave()
        return ""

    def _is_limited(self, peer: str) -> bool:
        limited = bool(self.limits.peer_connections and peer)
        return limited and not is_trusted(peer, self.limits.trusted_proxies)

    def discard(self, connection: OpenConnection) -> None:
        """Forget a connection that is closed."""
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()

    def drain(self) -> None:
        """Close idle connections, and the others after their next answer. New requests are refused by the app.

        A connection that a client has just used stays open for a moment: its next request may be on its way, and gets
        503 then, where a closed connection would only reset it.
        """
        self.draining = True
        self.app.stop()
        for heads in (self.heads, self.heads_over_tcp):
            heads.clear()
        self._close_idle(self.loop.time() - IN_USE_SECONDS)
        self.loop.call_later(IN_USE_SECONDS, self._close_idle, math.inf)

    def _close_idle(self, since: float) -> None:
        """Close the connections without a request, but not those that worked and are idle since a later time."""
        for connection in list(self.connections):
            work, at = connection.age
            if connection.idle and (work < WORKED or at < since):
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
