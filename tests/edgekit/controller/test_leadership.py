"""Leadership: one controller leads; one that lost the lock of the database stops, and its writes fail."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from edgekit.clock import SystemClock
from edgekit.controller import leadership
from edgekit.controller.leadership import Leadership
from edgekit.errors import DiskError, RefusedError, UnavailableError
from edgekit.mqtt.messages import Event
from edgekit.state import FleetState, open_fleet_state
from edgekit.state.leader_lock import FileLock, PostgresLock
from edgekit.state.leaders import SILENT_SECONDS
from tests.simulators.postgres import missing, running_postgres, stopped

needs_postgres = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@contextlib.asynccontextmanager
async def controller(url: str, name: str) -> AsyncIterator[tuple[Leadership, FleetState]]:
    """The leadership of a controller with a connection of its own, and its state as leader."""
    state = open_fleet_state(url, "f")
    found = Leadership(state=state, lock=state.leader_lock(), clock=SystemClock(), name=name)
    await found.start()
    try:
        yield found, state.fenced(found.check)
    finally:
        await found.stop()
        state.close()


async def until(holds) -> None:
    end = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def end_session(url: str, found: Leadership) -> None:
    """End the server's session that has the lock, as a failover of the database does."""
    assert isinstance(found._lock, PostgresLock)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(:one)"), {"one": found._lock._held})
    engine.dispose()


@needs_postgres
async def test_one_leads_and_the_next_one_leads_when_it_stops(postgres: str) -> None:
    """A clean stop gives the lock back at once; the term rises; the table names both."""
    async with controller(postgres, "a") as (first, state), controller(postgres, "b") as (second, _):
        assert (first.leading, second.leading) == (True, False)
        term = first.term
        await until(lambda: len(state.leaders.all(time.time())) == 2)
        assert [(one.name, one.role) for one in state.leaders.all(time.time())] == [
            ("a", "leads"),
            ("b", "stands by"),
        ]
        later = time.time() + SILENT_SECONDS + 20.0
        assert {one.role for one in state.leaders.all(later)} == {"silent"}
        await first.stop()
        await until(lambda: second.leading)
        assert second.term == term + 1
        assert not first.leading
        assert [one.name for one in state.leaders.all(time.time())] == ["b"]


@needs_postgres
async def test_a_leader_without_its_session_stops_and_writes_nothing(postgres: str) -> None:
    """The lock ended with the session, another controller leads, and a write that was begun before fails."""
    async with controller(postgres, "a") as (first, state), controller(postgres, "b") as (second, _):
        changes: list[bool] = []
        first.on_change(changes.append)
        term = first.term
        end_session(postgres, first)
        await until(lambda: second.leading or first.term > term)
        first.term = term  # a controller that has not noticed yet, because its process was held up
        with pytest.raises(UnavailableError, match="leads fleet 'f' now"):
            state.devices.add_event(Event("pi-1", "late", 1.0), 2.0)
        await until(lambda: changes)
        assert not state.devices.events("pi-1")


@needs_postgres
async def test_a_new_leader_waits_for_writes_of_the_one_before(postgres: str) -> None:
    """A term begins after the last transaction of the term before, so none is committed in it."""
    async with controller(postgres, "a") as (first, state):
        other = open_fleet_state(postgres, "f")
        order: list[str] = []
        with state.devices._writing():
            beginning = threading.Thread(target=lambda: order.append(f"term {other.leaders.begin_term('b', 1.0)}"))
            beginning.start()
            beginning.join(0.5)
            order.append("committed")
        beginning.join()
        assert order == ["committed", f"term {first.term + 1}"]
        with pytest.raises(UnavailableError, match="b leads"):
            state.devices.add_event(Event("pi-1", "late", 1.0), 2.0)
        other.close()


@needs_postgres
async def test_nobody_leads_without_the_database_and_one_does_after_it_returns(postgres: str) -> None:
    """The leader notices in its next check."""
    async with controller(postgres, "a") as (first, _), controller(postgres, "b") as (second, _):
        term = max(first.term, second.term)
        with stopped(postgres):
            await until(lambda: not first.leading and not second.leading)
        await until(lambda: first.leading or second.leading)
        assert max(first.term, second.term) > term
        await asyncio.sleep(3 * leadership.CHECK_SECONDS)
        assert first.leading != second.leading


@needs_postgres
async def test_a_leader_whose_database_hangs_stops_and_goes_on_when_it_answers(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that has no answer in time may mean that the server gave the lock away."""
    monkeypatch.setattr(leadership, "ANSWER_SECONDS", 0.2)
    async with controller(postgres, "a") as (first, _):
        term, held, answer = first.term, first._lock.hold, threading.Event()
        monkeypatch.setattr(first._lock, "hold", lambda: answer.wait(30.0) and held())
        await until(lambda: not first.leading)
        answer.set()
        await until(lambda: first.leading)
        assert first.term == term, "the lock was held all the time"


async def test_a_sqlite_database_serves_one_controller(tmp_path: Path) -> None:
    """A second one is refused with advice, one of another fleet is not; a stopped one makes way."""
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    async with controller(url, "a") as (first, _):
        assert first.leading
        with pytest.raises(RefusedError, match="SQLite serves only one") as caught:
            async with controller(url, "b"):
                pass
        assert "PostgreSQL" in caught.value.advice
        other = open_fleet_state(url, "g")
        assert other.leader_lock().hold()
        other.close()
    async with controller(url, "b") as (second, state):
        assert second.term == 2
        state.devices.add_event(Event("pi-1", "begun", 1.0), 2.0)


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A database in a folder that was removed."""
    with pytest.raises(DiskError, match="cannot be locked"):
        FileLock(tmp_path / "gone" / "fleet.db.f.lock").hold()


def test_an_event_that_two_controllers_get_is_stored_once(tmp_path: Path) -> None:
    """A repetition has the same time of sending; a second event of the same kind has another one."""
    state = open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "f")
    for event in (Event("pi-1", "full", 1.5), Event("pi-1", "full", 1.5), Event("pi-1", "full", 2.5)):
        state.devices.add_event(event, 9.0)
    assert len(state.devices.events("pi-1")) == 2
    state.close()
