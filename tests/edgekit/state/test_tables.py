"""The fleet's database: migrations, transactions, and two processes at once."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from edgekit.errors import NotFoundError, RefusedError, SettingsError, UnavailableError
from edgekit.mqtt.messages import Presence, Reported, Telemetry
from edgekit.rollout.cohort import Cohort, Device
from edgekit.rollout.plan import RolloutPlan, Wave
from edgekit.rollout.values import Aborted, DeviceState, Paused, Resumed, RolloutState
from edgekit.state import Work, open_fleet_state
from edgekit.state._sql import wrapped_errors
from edgekit.state.fleet.report_writer import check_report
from edgekit.state.rollout.assignments import assign
from edgekit.state.tables import MIGRATIONS, metadata, migration_config, open_database
from edgekit.trust.assignment import Entry
from tests.simulators.postgres import emptied, missing, running_postgres


def entry(version="1.0.0", target="t"):
    return Entry(f"models/m/{target}/{version}/manifest.json", 9, version[0] * 64, "m", target, version, 1)


@pytest.fixture(scope="module")
def postgres():
    """URL of a PostgreSQL database to empty: the one in EDGEKIT_TEST_POSTGRES, else of a server of the test's own."""
    if "EDGEKIT_TEST_POSTGRES" in os.environ:
        yield os.environ["EDGEKIT_TEST_POSTGRES"]
        return
    if missing():
        pytest.skip(missing())
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    return emptied(request.getfixturevalue("postgres"))


@pytest.fixture
def state(url):
    opened = open_fleet_state(url, "f")
    yield opened
    opened.close()


def enroll(state, *names):
    for name in names:
        state.devices.enroll(Device(name=name, target="t", public_key="pem", enrolled=time.time()))


def start(state, version="1.0.0", **plan):
    return state.rollouts.start(
        "m", version, {"t": entry(version)}, plan=RolloutPlan(**plan), cohort=Cohort(), now=1000.0
    )


def test_of_two_operators_who_start_a_rollout_at_once_one_is_refused(url):
    """On two connections, for one model after the other."""
    one, other = open_fleet_state(url, "f"), open_fleet_state(url, "f")
    barrier, refused = threading.Barrier(2), []

    def start_all(state):
        for number in range(10):
            barrier.wait(60)
            try:
                state.rollouts.start(f"m{number}", "1.0.0", {"t": entry()}, now=1000.0)
            except RefusedError:
                refused.append(number)

    threads = [threading.Thread(target=start_all, args=(state,)) for state in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(refused) == list(range(10))
    assert len(one.rollouts.active()) == 10
    one.close()
    other.close()


def test_the_first_assignments_of_a_device_by_two_processes_are_both_kept(url):
    """Of two models at once, where there is no row yet that the first could lock."""
    states = [open_fleet_state(url, "f") for _ in range(2)]
    barrier, faults = threading.Barrier(2), []

    def assign_all(state, model):
        for number in range(10):
            barrier.wait(60)
            try:
                with state.assignments._writing() as connection:
                    assign(connection, "f", f"d-{number}", model, entry())
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=assign_all, args=pair) for pair in zip(states, ("one", "two"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert faults == []
    for stored in states[0].assignments.all():
        assert sorted(stored.entries) == ["one", "two"]
        assert stored.version == 2
    for state in states:
        state.close()


# --- migrations


def test_migrations_make_exactly_the_tables_of_the_code(url):
    """Fails when a table was changed without a migration."""
    engine = open_database(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_migrations_can_be_undone(url):
    """A downgrade to no revision removes all tables, and a new upgrade works."""
    engine = open_database(url)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        command.downgrade(migration_config(connection), "base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()
    open_database(url).dispose()


def test_digests_of_an_earlier_rule_are_not_kept(url):
    """Two devices with one old digest may differ in what the check of a rollout reads now, such as their memory."""
    with contextlib.closing(open_fleet_state(url, "f")) as opened:
        enroll(opened, "a")
        opened.devices.save_report(reported(5), 1.0)
    engine = open_database(url)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        assert connection.execute(sa.text("SELECT traits FROM reports")).scalar_one()
        command.downgrade(migration_config(connection), "0014")
        connection.execute(sa.text("UPDATE reports SET traits = 'old'"))
    engine.dispose()
    engine = open_database(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT traits FROM reports")).scalar_one() == ""
    engine.dispose()


def test_migrations_are_part_of_the_package():
    """The migration files are inside the package, so an installed edgekit finds them."""
    assert (MIGRATIONS / "env.py").is_file()
    assert sorted((MIGRATIONS / "versions").glob("r0001_*.py"))
    assert MIGRATIONS.parent.name == "state"


def test_newer_database_is_refused(url):
    """A database of a newer edgekit is refused with advice to update."""
    engine = open_database(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(SettingsError, match="revision 9999") as caught:
        open_database(url)
    assert "newer edgekit" in caught.value.advice


@pytest.mark.parametrize("bad", ["nonsense", "oracle://u:secret@h/d", "postgresql+nodriver://u:secret@h/d"])
def test_bad_urls_are_settings_errors_without_the_password(bad):
    """The error shows the URL without its password."""
    with pytest.raises(SettingsError) as caught:
        open_database(bad)
    assert "secret" not in str(caught.value)


def test_unreachable_database_is_unavailable(tmp_path):
    """A missing folder is an error that names the database."""
    with pytest.raises(UnavailableError, match=r"fleet\.db"):
        open_database(f"sqlite:///{tmp_path}/missing/fleet.db")


def test_two_processes_may_open_an_empty_database_at_once(url):
    """The first migrates, the others wait for it."""
    faults = []

    def open_it():
        try:
            open_fleet_state(url, "f").close()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert faults == []


OPENER = """
import sys, threading, time
from edgekit.state import Work, open_fleet_state
from edgekit.state.fleet.report_writer import check_report

threads = int(sys.argv[1])
open_fleet_state("sqlite://", "f").close()  # what is imported late is imported now
print("ready", flush=True)
for line in sys.stdin:
    url, begin = line.split()
    faults = []

    def open_it():
        time.sleep(max(0.0, float(begin) - time.time()))
        try:
            open_fleet_state(url, "f").close()
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")

    running = [threading.Thread(target=open_it) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    print(faults, flush=True)
"""


def test_opening_waits_for_a_writer_that_has_no_write_ahead_log_yet(tmp_path):
    """Switching to the write-ahead log fails at once while another connection writes, so opening retries it."""
    path = tmp_path / "fleet.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.5, writer.execute, ["COMMIT"])
        timer.start()
        open_database(f"sqlite:///{path}").dispose()
        timer.join()
        assert writer.execute("PRAGMA journal_mode").fetchall() == [("wal",)]


def test_opening_a_database_that_stays_locked_is_an_error_in_the_end(tmp_path):
    """The wait ends after a time limit, and the error names the database."""
    path = tmp_path / "fleet.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match=r"fleet\.db cannot be opened: database is locked"):
            open_database(f"sqlite:///{path}", busy_seconds=0.2)


def test_processes_and_threads_may_open_empty_databases_at_once(tmp_path):
    """SQLite's busy time-out covers neither the switch to the write-ahead log nor its removal by the last connection.

    Four processes with two threads each open the same empty database at once, again and again: every one succeeds.
    """
    command = [sys.executable, "-c", OPENER, "2"]
    openers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    try:
        assert [opener.stdout.readline() for opener in openers] == ["ready\n"] * len(openers)
        for number in range(10):
            begin = time.time() + 0.02
            for opener in openers:
                opener.stdin.write(f"sqlite:///{tmp_path}/{number}.db {begin}\n")
            assert [opener.stdout.readline() for opener in openers] == ["[]\n"] * len(openers)
    finally:
        for opener in openers:
            opener.kill()
            opener.communicate()


# --- devices


def test_device_is_enrolled_once(state):
    """A second device of the same name is refused; other fleets have their own names."""
    enroll(state, "a")
    with pytest.raises(SettingsError, match="already enrolled"):
        enroll(state, "a")
    with pytest.raises(NotFoundError, match="no device 'b'"):
        state.devices.get("b")


def test_fleets_do_not_see_each_other(url, state):
    """One database may hold several fleets."""
    other = open_fleet_state(url, "g")
    enroll(state, "a")
    enroll(other, "a", "b")
    start(other)
    assert [device.name for device in state.devices.all()] == ["a"]
    assert state.rollouts.all() == state.rollouts.active() == []
    with pytest.raises(NotFoundError):
        state.rollouts.get(1)
    other.close()


def test_events_are_bounded(state):
    """Beyond the limit the oldest events are deleted."""
    from edgekit.mqtt.messages import Event
    from edgekit.state import DeviceTable

    table = DeviceTable(state._engine, state.fleet, max_events=5)
    for i in range(12):
        table.add_event(Event(device="a", kind=f"k{i}", at=0.0), float(i))
    assert [event.kind for event in state.devices.events(limit=100)] == ["k11", "k10", "k9", "k8", "k7"]


# --- rollouts and assignments


def test_tell_is_one_transaction_with_the_assignment(state):
    """A survey that assigns the bundle to a device also writes the device's assignment, version 1."""
    enroll(state, "a", "b")
    rollout = start(state)
    state.rollouts.survey(rollout.id, 1001.0)
    (assigned,) = state.assignments.all()
    assert assigned.entries == {"m": entry()}
    assert (assigned.version, assigned.payload) == (1, None)
    assert state.rollouts.get(rollout.id).devices[assigned.device].state is DeviceState.ASSIGNED


def test_rollout_is_read_back_as_it_was(state):
    """A rollout read from the database equals the one that was saved."""
    enroll(state, "a", "b", "c")
    rollout = start(state, waves=(Wave(count=2), Wave(share=1.0)))
    surveyed = state.rollouts.survey(rollout.id, 1001.0)
    assert state.rollouts.get(rollout.id) == surveyed
    paused = state.rollouts.apply(rollout.id, Paused("x"), 1002.0)
    assert state.rollouts.get(rollout.id) == paused
    assert [active.id for active in state.rollouts.active()] == [rollout.id]
    aborted = state.rollouts.apply(rollout.id, Aborted("y"), 1003.0)
    assert aborted.state is RolloutState.ABORTED
    assert state.rollouts.active() == []


def test_second_rollout_of_a_model_is_refused(state):
    """A model has one rollout at a time; a refused start changes nothing."""
    enroll(state, "a")
    first = start(state)
    with pytest.raises(RefusedError, match=f"rollout {first.id} of m 1.0.0 is RUNNING"):
        start(state, "2.0.0")
    assert len(state.rollouts.all()) == 1
    state.rollouts.apply(first.id, Aborted(), 1001.0)
    start(state, "2.0.0")


def test_operator_event_in_the_wrong_state_changes_nothing(state):
    """A refused event leaves the rollout as it was."""
    rollout = start(state)
    with pytest.raises(RefusedError, match="cannot be resumed"):
        state.rollouts.apply(rollout.id, Resumed(), 1001.0)
    assert state.rollouts.get(rollout.id) == rollout


def test_concurrent_steps_lose_nothing(url):
    """Concurrent surveys of several controllers assign each device once, with one version."""
    opened = [open_fleet_state(url, "f") for _ in range(4)]
    names = [f"d{i}" for i in range(12)]
    enroll(opened[0], *names)
    rollout = start(opened[0], waves=(Wave(share=1.0),))

    def survey(state):
        for _ in range(5):
            state.rollouts.survey(rollout.id, 1001.0)

    threads = [threading.Thread(target=survey, args=(state,)) for state in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert {assigned.version for assigned in opened[0].assignments.all()} == {1}
    assert len(opened[0].assignments.all()) == len(names)
    for state in opened:
        state.close()


def test_controllers_that_hear_of_a_device_at_once_both_succeed(url):
    """Four controllers store the first messages of many devices at once: no error, and no birth is overwritten."""
    opened = [open_fleet_state(url, "f") for _ in range(4)]
    names = [f"d{i}" for i in range(20)]
    enroll(opened[0], *names)
    together, failures = threading.Barrier(4), []

    def listen(state, take):
        for name in names:
            together.wait(120)
            try:
                take(state, name)
            except Exception as error:  # a thread's own failure would pass unseen
                failures.append(error)

    takes = (
        lambda state, name: state.devices.save_presence(name, Presence(True, 5), 1000.0),
        lambda state, name: state.devices.save_report(Reported(name, "f", 1, 0.0, 0, {}, {}), 1000.0, live=False),
        lambda state, name: state.devices.save_telemetry(Telemetry(name, 1.0, 1.0, {}), 1000.0),
        lambda state, name: state.devices.save_presence(name, Presence(False, 4), 1000.0),
    )
    threads = [threading.Thread(target=listen, args=pair) for pair in zip(opened, takes, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert all(view.online and view.telemetry for view in opened[0].devices.views(1000.0, 90.0))
    for state in opened:
        state.close()


def test_signature_of_an_older_version_is_not_kept(state):
    """An assignment that changed while it was being signed is signed again."""
    enroll(state, "a")
    rollout = start(state)
    state.rollouts.survey(rollout.id, 1001.0)
    (stale,) = state.assignments.unsigned(0.0)
    state.rollouts.apply(rollout.id, Aborted(), 1002.0)
    state.assignments.signed("a", stale.version, b"signed too late", 9e9)
    (again,) = state.assignments.unsigned(0.0)
    assert (again.version, again.entries, again.payload) == (2, {}, None)
    assert state.assignments.renew("a", stale.version) is None


def test_hostile_assignment_number_in_a_report_is_passed_over(state):
    """A device that reports an absurd version does not raise ours above the largest integer that can be stored."""
    enroll(state, "a")
    state.devices.save_report(Reported("a", "f", 1, 0.0, 2**63, {}, {}), 1000.0)
    rollout = start(state)
    state.rollouts.survey(rollout.id, 1001.0)
    assert [assigned.version for assigned in state.assignments.all()] == [1]


def test_command_numbers_rise_even_in_a_new_database(state):
    """Numbers start from the clock, so that devices accept the commands of a new database."""
    first = state.commands.add("a", "self-test", now=1_000_000.0, expires=1_000_060.0)
    second = state.commands.add("a", "self-test", now=1_000_000.0, expires=1_000_060.0)
    assert (first.number, second.number) == (1_000_000, 1_000_001)


def test_waves_that_are_filters_reach_their_devices_in_order(state):
    """The first filter that matches decides, on both databases."""
    enroll(state, "a", "b", "c", "d")
    first, second = (Cohort(filter=text) for text in ("name == c", "name in (b, c)"))
    waves = (Wave(count=1, cohort=first), Wave(count=2, cohort=second), Wave(share=1.0))
    number = state.rollouts.start("m", "1.0.0", {"t": entry()}, plan=RolloutPlan(waves=waves), now=1.0).id
    devices = state.rollouts.survey(number, 2.0).devices
    assert {name: one.chosen for name, one in devices.items()} == {"a": None, "b": 1, "c": 0, "d": None}
    assert [name for name, one in devices.items() if one.state is DeviceState.ASSIGNED] == ["c"]


# --- many messages at once


def reported(number, device="a", **fields):
    return Reported(device, "f", number, 1.0, 0, {}, {}, **fields)


def test_steps_of_one_transaction_are_stored_together_or_not_at_all(state):
    """Also where the caller goes on after the error of a step, because the step may have written half of its rows."""
    enroll(state, "a", "b")

    def go_on_after_an_error():
        with state.together():
            state.devices.save_presence("a", Presence(True, 1), 5.0)
            with contextlib.suppress(NotFoundError):
                state.rollouts.apply(7, Paused(), 5.0)

    with pytest.raises(NotFoundError):
        go_on_after_an_error()
    assert not any(view.online for view in state.devices.views(5.0, 90.0))
    with state.together():
        state.devices.save_presence("a", Presence(True, 1), 5.0)
        state.devices.save_report(reported(3), 5.0)
        assert state.devices.numbers("a").report == 3
    assert {view.device: view.online for view in state.devices.views(5.0, 90.0)} == {"a": True, "b": False}


def test_of_reports_that_come_together_the_last_one_of_each_device_stays(state):
    """Filters select by it, and each report is judged against those before it."""
    enroll(state, "a", "b")
    state.devices.save_report(reported(5, facts={"n": 5}), 1.0)
    checked = [
        check_report(reported(number, device, facts={"n": number}), live=True, payload=None)
        for device, number in (("a", 6), ("b", 1), ("a", 4), ("a", 8), ("a", 7))
    ]
    assert state.devices.save_reports(checked, 2.0) == [0, 0, 6, 0, 8]
    assert [view.facts for view in state.devices.views(2.0, 90.0)] == [{"n": 8}, {"n": 1}]
    assert state.devices.count(2.0, 90.0, Cohort(filter="fact.n == 8")) == 1
    assert state.devices.save_reports(checked, 3.0) == [8, 1, 8, 8, 8]


def test_rows_of_a_clock_that_was_ahead_hide_no_change(state):
    """The last change is the last one that has happened by now."""
    state.devices.enroll(Device(name="a", target="t", public_key="pem", enrolled=9000.0))
    state.devices.enroll(Device(name="b", target="t", public_key="pem", enrolled=1.0))
    state.devices.save_report(reported(1), 9001.0)
    assert state.work.look(5.0, 10.0).change == 1.0
    state.devices.save_report(reported(2), 6.0)
    assert state.work.look(7.0, 10.0).change == 6.0


def test_a_device_that_was_seen_by_a_clock_ahead_is_not_online(state):
    """In lists, filters and counts; clocks of controllers that differ by seconds change nothing."""
    state.devices.enroll(Device(name="a", target="t", public_key="pem", enrolled=1.0))
    state.devices.save_presence("a", Presence(online=True, session=1), 9000.0)
    for now, online in ((8990.0, True), (9010.0, True), (9200.0, False), (5000.0, False)):
        assert [one.online for one in state.devices.views(now, 90.0)] == [online]
        assert state.devices.count(now, 90.0, Cohort(filter="online")) == online
        assert state.overview.count(now, 90.0).online == online


def test_a_look_finds_the_work_of_a_round(state):
    """And nothing where there is nothing to do."""
    assert state.work.look(5.0, 10.0) == Work()
    state.devices.enroll(Device(name="a", target="t", public_key="pem", enrolled=1.0))
    state.devices.save_report(reported(1), 7.0)
    state.rollouts.start("m", "1.0.0", {"t": entry()}, now=8.0)
    found = state.work.look(9.0, 10.0)
    assert (found.change, found.rollouts, found.unsigned, found.unpublished) == (7.0, True, False, False)
    state.rollouts.survey(1, 9.0)
    assert state.work.look(9.0, 10.0).unsigned
    state.assignments.signed("a", 1, b"signed", 100.0)
    found = state.work.look(9.0, 10.0)
    assert (found.unpublished, found.unsigned) == (True, False)
    assert state.work.look(9.0, 101.0).unsigned  # it expires soon
    state.assignments.published("a", 1)
    assert not state.work.look(9.0, 10.0).unpublished
    state.pause.set(True, 9.0, reason="storm")
    assert state.work.look(9.0, 10.0).pause == state.pause.get()
    number = state.commands.add("a", "self-test", now=9.0, expires=20.0).number
    assert state.work.look(9.0, 10.0).commands
    state.commands.sent_all([state.commands.get("a", number)])
    assert not state.work.look(9.0, 10.0).commands
    assert state.work.look(30.0, 10.0).commands  # it is late


def test_a_database_that_does_not_answer_is_an_error_with_advice():
    """Full disks and stopped servers look alike here; people need to know that nothing else must be done."""
    with pytest.raises(UnavailableError, match="disk is full") as caught, wrapped_errors():
        raise sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))
    assert "go on by themselves" in caught.value.advice
