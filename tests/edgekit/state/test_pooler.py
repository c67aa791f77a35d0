"""A pooler between edgekit and PostgreSQL: commands work in both modes, a leader needs sessions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from edgekit.errors import UnavailableError
from edgekit.rollout.cohort import Device
from edgekit.state import open_fleet_state
from tests.simulators.pooler import missing, running_pooler
from tests.simulators.postgres import emptied, running_postgres

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_many_statements_go_through_a_pooler(server: str, mode: str) -> None:
    """Statements that are repeated on connections that the pooler mixes are no error."""
    with running_pooler(emptied(server), mode) as url:
        states = [open_fleet_state(url, "f") for _ in range(3)]
        for number in range(8):
            for one, state in enumerate(states):
                state.devices.enroll(Device(f"d{one}-{number}", "x86-64", "pem"))
                assert state.devices.get(f"d{one}-{number}").target == "x86-64"
        assert len(states[0].devices.all()) == 24
        for state in states:
            state.close()


def test_a_pooler_in_transaction_mode_is_refused_as_the_place_of_the_leaders_lock(server: str) -> None:
    """The lock is never taken there, since it would stay with a session that nobody owns; the error names the mode."""
    with running_pooler(emptied(server), "transaction") as url:
        state = open_fleet_state(url, "f")
        lock = state.leader_lock()
        for _ in range(3):
            with pytest.raises(UnavailableError, match=r"pooler .* session mode"):
                lock.hold()
        lock.release()
        state.close()
    engine = sa.create_engine(server)
    with engine.connect() as connection:
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert connection.exec_driver_sql(held).scalar_one() == 0
    engine.dispose()


def test_a_pooler_in_session_mode_keeps_the_leaders_lock(server: str) -> None:
    """One state leads, another one does not until the first gives the lock back."""
    with running_pooler(emptied(server), "session") as url:
        first, second = open_fleet_state(url, "f"), open_fleet_state(url, "f")
        one, two = first.leader_lock(), second.leader_lock()
        assert one.hold()
        assert one.hold()
        assert not two.hold()
        one.release()
        assert two.hold()
        two.release()
        first.close()
        second.close()
