"""A database that answers and accepts no changes: a standby after a failover, or a user without the right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from edgekit.errors import UnavailableError
from edgekit.rollout.cohort import Device
from edgekit.state import open_fleet_state
from tests.simulators.postgres import emptied, missing, running_postgres

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_postgres() as url:
        yield url


def run(url: str, *commands: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for command in commands:
            connection.exec_driver_sql(command)
    engine.dispose()


def test_a_read_only_database_is_named_and_left_when_it_can_be_written_again(server: str) -> None:
    """The error names the cause in one line; the same state goes on by itself, with a new connection."""
    open_fleet_state(emptied(server), "f").close()
    run(server, "ALTER DATABASE postgres SET default_transaction_read_only = on")
    state = open_fleet_state(server, "f")
    try:
        with pytest.raises(UnavailableError, match=r"accepts no changes: cannot execute .* read-only") as caught:
            state.devices.enroll(Device("d1", "x86-64", "pem"))
        assert "\n" not in str(caught.value)
        assert "target_session_attrs=read-write" in caught.value.advice
        assert list(state.devices.all()) == []  # reading goes on
        run(
            server,
            "SET default_transaction_read_only = off",
            "ALTER DATABASE postgres RESET default_transaction_read_only",
        )
        with pytest.raises(UnavailableError):
            state.devices.enroll(Device("d1", "x86-64", "pem"))  # the connection that was opened to read
        state.devices.enroll(Device("d1", "x86-64", "pem"))
        assert [one.name for one in state.devices.all()] == ["d1"]
    finally:
        state.close()


def test_a_user_without_the_right_to_write_is_named(server: str) -> None:
    """No statement and no values of it are in the message."""
    open_fleet_state(emptied(server), "f").close()
    run(
        server,
        "CREATE ROLE reader LOGIN",
        "GRANT USAGE ON SCHEMA public TO reader",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
    )
    state = open_fleet_state(server.replace("postgres@", "reader@"), "f")
    try:
        with pytest.raises(UnavailableError, match="accepts no changes: permission denied") as caught:
            state.devices.enroll(Device("d1", "x86-64", "pem"))
        assert "INSERT" not in str(caught.value)
    finally:
        state.close()
