"""Leadership: of several controllers with one database, one does what must be done once.

The leader holds a lock in the database and checks it all the time. A controller that lost it stops at once, and writes
that it had begun fail: each of its transactions checks the leader's term.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, RefusedError, UnavailableError
from edgekit.protocols import Clock
from edgekit.waiting import within

if TYPE_CHECKING:
    import sqlalchemy as sa

    from edgekit.state import FleetState
    from edgekit.state.leader_lock import LeaderLock

CHECK_SECONDS = 0.5
ANSWER_SECONDS = 5.0  # a database that does not answer for so long may have given the lock to another controller
SEEN_SECONDS = 10.0

log = logging.getLogger(__name__)


def controller_name() -> str:
    """A name for this controller: its host, and a random part because several may run on one host."""
    return f"{socket.gethostname()[:50]}-{secrets.token_hex(4)}"


class Leadership:
    """Says whether this controller leads, and calls listeners when that changes.

    Args:
        state: The fleet's database.
        lock: The lock of the leader, used by nobody else.
        clock: Time.
        name: Name of this controller.

    Attributes:
        name: Name of this controller.
        term: The term in which it leads; 0 while it does not lead.
    """

    def __init__(self, *, state: FleetState, lock: LeaderLock, clock: Clock, name: str) -> None:
        self._state, self._lock, self._clock = state, lock, clock
        self.name = name
        self.term = 0
        self._held_term = 0  # of the lock that is held; `term` is 0 while it cannot be checked
        self._began = clock.wall()
        self._check: asyncio.Future[int] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[Callable[[bool], None]] = []
        self._fault = ""

    @property
    def leading(self) -> bool:
        """True while this controller leads."""
        return self.term > 0

    def on_change(self, listener: Callable[[bool], None]) -> None:
        """Call `listener(leading)` after every change."""
        self._listeners.append(listener)

    def check(self, connection: sa.Connection) -> None:
        """Check at the start of a transaction that this controller leads; the database keeps it so until the end.

        Raises:
            UnavailableError: it does not lead.
        """
        from edgekit.state.leaders import check_term

        if not self.term:
            raise UnavailableError("this controller does not lead; it writes nothing as leader")
        check_term(connection, self._state.fleet, self.term)

    async def start(self) -> None:
        """Take the lock if it is free, and watch it from now on.

        Raises:
            RefusedError: another controller has the lock of a database that serves one controller only.
            EdgekitError: the lock of such a database cannot be used.
        """
        if self._lock.sole and not await asyncio.to_thread(self._lock.hold):
            raise RefusedError(
                f"another controller of fleet {self._state.fleet!r} runs with this database; SQLite serves only one",
                advice="Stop the other one, or move the fleet to PostgreSQL, where a second one stands by.",
            )
        await self.round()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch()), loop.create_task(self._show())]

    async def stop(self) -> None:
        """Give the lock back, so that a standby leads at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._set(0)
        with contextlib.suppress(EdgekitError, asyncio.TimeoutError):  # else the lock ends with this process
            await within(ANSWER_SECONDS, asyncio.to_thread(self._leave))

    async def round(self) -> None:
        """Check the lock, or try to take it."""
        if self._check is None:
            self._check = asyncio.ensure_future(asyncio.to_thread(self._hold))
        try:
            term = await within(ANSWER_SECONDS, asyncio.shield(self._check))
        except asyncio.TimeoutError:  # the check goes on in its thread, and a later round takes its answer
            self._note("the database does not answer")
            self._set(0)
            return
        except EdgekitError as error:
            self._note(str(error))
            term = 0
        except Exception:  # supervision boundary: a controller that cannot check its lock must not go on as leader
            log.exception("the lock of the leader cannot be checked")
            term = 0
        else:
            self._fault = ""
        self._check = None
        self._set(term)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self.round()

    async def _show(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._state.leaders.seen, self.name, self._began, self._clock.wall())
            except EdgekitError as error:
                log.info("that this controller runs is noted later: %s", error)
            await asyncio.sleep(SEEN_SECONDS)

    def _hold(self) -> int:
        """The term in which this controller may lead; 0 while another leads."""
        try:
            if not self._lock.hold():
                self._held_term = 0
            elif not self._held_term:
                self._held_term = self._state.leaders.begin_term(self.name, self._clock.wall())
        except EdgekitError:
            self._held_term = 0
            raise
        return self._held_term

    def _leave(self) -> None:
        try:
            self._state.leaders.left(self.name)
        finally:
            self._lock.release()

    def _note(self, fault: str) -> None:
        if fault != self._fault:
            log.warning("the lock of the leader cannot be checked: %s", fault)
        self._fault = fault

    def _set(self, term: int) -> None:
        before, self.term = self.term, term
        if before == term:
            return
        if term:
            log.info("this controller, %s, leads fleet %s in term %d", self.name, self._state.fleet, term)
        else:
            log.warning("this controller, %s, does not lead any more", self.name)
        for listener in self._listeners:
            listener(self.leading)
