"""What all connections of one HTTP server share: the application, the bound on bodies, time limits, and the end."""

from __future__ import annotations

import asyncio
from typing import Protocol

from edgekit.serving.http.head_cache import KnownHeads
from edgekit.serving.http.messages import Application

SWEEP_SECONDS = 1.0  # how late a limit of time may be noticed


class OpenConnection(Protocol):
    """A connection as its registry sees it."""

    deadline: float  # of the event loop's clock; `late` is called after it

    @property
    def idle(self) -> bool:
        """True while no request is being read or answered."""
        ...

    @property
    def age(self) -> tuple[bool, float]:
        """Sorts connections by who may be closed first: those that never asked anything, then the oldest."""
        ...

    def leave(self) -> None:
        """Close to make room for another connection."""
        ...

    def close(self) -> None:
        """Close when what is written has been sent."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def late(self, now: float) -> None:
        """A time limit has passed."""
        ...


class Hub:
    """What all connections of a server share.

    Attributes:
        app: What answers.
        connections: Those that are open.
        draining: Each answer is the last of its connection.
        held_bytes: Of bodies that are not answered yet.
        heads, heads_over_tcp: Of requests that came before; where they come from decides what is answered.
    """

    def __init__(self, app: Application) -> None:
        self.app = app
        self.loop = asyncio.get_running_loop()
        self.connections: set[OpenConnection] = set()
        self.draining = False
        self.held_bytes = 0
        self.heads, self.heads_over_tcp = KnownHeads(), KnownHeads()
        self.empty = asyncio.Event()
        self.empty.set()
        self._sweeper: asyncio.TimerHandle | None = None

    def add(self, connection: OpenConnection) -> None:
        """Know a new connection; time limits are looked after as long as there is one."""
        self.connections.add(connection)
        self.empty.clear()
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def discard(self, connection: OpenConnection) -> None:
        """Forget a connection that is closed."""
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()

    def drain(self) -> None:
        """Close what is idle; what is not closes after its answer."""
        self.draining = True
        for connection in list(self.connections):
            if connection.idle:
                connection.close()

    def abort(self) -> None:
        """Close every connection, whatever it is doing."""
        for connection in list(self.connections):
            connection.abort()

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in [one for one in self.connections if one.deadline < now]:
            connection.late(now)
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep) if self.connections else None
