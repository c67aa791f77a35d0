"""Fleet databases of earlier releases can be migrated, read and used by commands and by the current code."""

import json
import os

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.runtime.migration import MigrationContext
from click.testing import CliRunner

from edgekit.cli.main import edgekit
from edgekit.rollout.values import Aborted, DeviceState, Resumed, RolloutState
from edgekit.state import open_fleet_state
from edgekit.state.tables import migration_config, open_database
from tests.simulators.postgres import emptied, missing, running_postgres

FLEET = "assets"
TABLES = ("devices", "reports", "presence", "rollouts", "rollout_devices", "assignments", "commands", "events")


@pytest.fixture(scope="module")
def postgres():
    """URL of a PostgreSQL database for tests: EDGEKIT_TEST_POSTGRES, or a server that the fixture starts."""
    if "EDGEKIT_TEST_POSTGRES" in os.environ:
        yield os.environ["EDGEKIT_TEST_POSTGRES"]
        return
    if missing():
        pytest.skip(missing())
    with running_postgres() as url:
        yield url


@pytest.fixture
def control(release, tmp_path, monkeypatch):
    folder = release.control(tmp_path)
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("EDGEKIT_") and name != "EDGEKIT_TEST_POSTGRES"]:
        monkeypatch.delenv(name)
    return folder


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, control):
    """The release's database: a copy of the SQLite file, or its rows in PostgreSQL at the release's revision."""
    file = f"sqlite:///{control / 'edgekit.db'}"
    if request.param == "sqlite":
        return file
    target = emptied(request.getfixturevalue("postgres"))
    copy_rows(file, target)
    return target


def copy_rows(source, target):
    """Migrate the target to the revision of the source, and copy all rows."""
    old = sa.create_engine(source)
    tables = sa.MetaData()
    tables.reflect(old)
    new = sa.create_engine(target)
    with old.connect() as reading, new.begin() as writing:
        command.upgrade(migration_config(writing), MigrationContext.configure(reading).get_current_revision())
        target_tables = sa.MetaData()
        target_tables.reflect(writing)
        for table in target_tables.sorted_tables:
            if table.name == "alembic_version":
                continue
            rows = [dict(row) for row in reading.execute(sa.select(tables.tables[table.name])).mappings()]
            if rows:
                writing.execute(table.insert(), rows)
            if "id" in table.c:
                writing.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), max(id)) FROM {table.name}"
                )
    old.dispose()
    new.dispose()


@pytest.fixture
def state(url):
    opened = open_fleet_state(url, FLEET)
    yield opened
    opened.close()


def contents(url):
    """Every row of the tables of the first release, as comparable values."""
    engine = sa.create_engine(url)
    tables, contents = sa.MetaData(), {}
    tables.reflect(engine)
    with engine.connect() as connection:
        for name in TABLES:
            rows = connection.execute(sa.select(tables.tables[name])).mappings()
            contents[name] = sorted(sorted((column, repr(value)) for column, value in row.items()) for row in rows)
    engine.dispose()
    return contents


def test_rollouts_are_read(state):
    """Two finished rollouts, an aborted, a paused and a running one are read with the states of their devices."""
    rollouts = state.rollouts.all()
    assert [one.state for one in rollouts] == [
        RolloutState.FINISHED,
        RolloutState.FINISHED,
        RolloutState.ABORTED,
        RolloutState.PAUSED,
        RolloutState.RUNNING,
    ]
    assert [(one.model, one.version) for one in rollouts][3:] == [("shapes", "1.1.0"), ("digits", "1.1.0")]
    assert rollouts[2].reason == "moved (was paused: maintenance)"
    assert rollouts[3].stopped_itself
    assert "sealed for device class doors" in rollouts[3].devices["pi-1"].reason
    assert {name: one.state for name, one in rollouts[4].devices.items()} == {
        "jetson-1": DeviceState.SKIPPED,
        "pi-1": DeviceState.ASSIGNED,
    }
    assert [one.id for one in state.rollouts.active()] == [4, 5]


def test_devices_events_and_commands_are_read(release, state):
    """Devices, reports, events and assignments of the release are read."""
    views = {view.device: view for view in state.devices.views(release.made_at, 90.0)}
    assert list(views) == ["jetson-1", "pi-1", "pi-2", "pi-9"]
    assert views["pi-1"].labels == {"site": "north"}
    assert views["pi-1"].models["digits"].state == "DOWNLOADING"
    assert views["pi-1"].outcomes["shapes"].error == "CompatibilityError"
    assert views["pi-1"].telemetry["counters"]
    assert views["pi-2"].seen == 0.0
    first = [event.kind for event in state.devices.events("pi-1", limit=100)][-3:]
    assert first == ["deployment-refused", "deployment-succeeded", "deployment-succeeded"]
    assigned = state.assignments.get("pi-1")
    assert {name: entry.version for name, entry in assigned.entries.items()} == {"digits": "1.1.0", "shapes": "1.1.0"}
    assert assigned.payload
    assert assigned.published == assigned.version


def test_the_fleet_goes_on_in_it(release, state):
    """Rollouts can be resumed and aborted, new commands get higher numbers, and a survey changes nothing."""
    now = release.made_at
    before = state.rollouts.get(5)
    assert state.rollouts.survey(5, now) == before
    assert (
        state.rollouts.apply(4, Resumed(), now).state is RolloutState.FINISHED
        or state.rollouts.get(4).state is RolloutState.PAUSED
    )
    assert state.rollouts.apply(5, Aborted("over"), now).state is RolloutState.ABORTED
    assert state.assignments.get("pi-1").entries["digits"].version == "1.0.0"
    command = state.commands.add("pi-2", "self-test", now=now, expires=now + 60)
    assert command.number > now - 86_400


def test_commands_list_it(control):
    """The commands of an operator list, show and abort what the release stored."""
    rows = ran_json("rollout", "list", "--json")
    assert [(row["id"], row["state"]) for row in rows] == [
        (1, "FINISHED"),
        (2, "FINISHED"),
        (3, "ABORTED"),
        (4, "PAUSED"),
        (5, "RUNNING"),
    ]
    assert ran_json("rollout", "status", "5", "--json")["devices"]["pi-1"]["state"] == "TOLD"
    assert [row["device"] for row in ran_json("device", "list", "--json")] == ["jetson-1", "pi-1", "pi-2", "pi-9"]
    shown = ran_json("device", "show", "pi-1", "--json")
    assert shown["assigned"]["entries"]["digits"]["version"] == "1.1.0"
    assert shown["events"][-1]["kind"] == "deployment-succeeded"
    assert ran_json("rollout", "abort", "4", "--json")["state"] == "ABORTED"


def ran_json(*words):
    result = CliRunner().invoke(edgekit, list(words))
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_migrating_down_to_the_release_and_up_again_keeps_every_row(control, url):
    """Opening migrates to the newest revision; a downgrade restores the tables and rows of the release."""
    before = contents(url)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    engine.dispose()
    open_database(url).dispose()
    migrate(url, command.downgrade, revision)
    assert contents(url) == before
    open_database(url).dispose()
    state = open_fleet_state(url, FLEET)
    assert len(state.rollouts.all()) == 5
    state.close()


def test_migrating_down_to_nothing_and_up_again_gives_an_empty_fleet(url):
    """A database with rows can be downgraded to the base and upgraded again, and the new tables work."""
    open_database(url).dispose()
    migrate(url, command.downgrade, "base")
    engine = sa.create_engine(url)
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()
    state = open_fleet_state(url, FLEET)
    assert state.devices.all() == state.rollouts.all() == []
    assert state.commands.add("a", "self-test", now=1.0, expires=2.0).number == 1
    state.close()


def migrate(url, migration, revision):
    engine = open_database(url)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        migration(migration_config(connection), revision)
    engine.dispose()
