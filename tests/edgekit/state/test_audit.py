"""Every change of the fleet state is in the audit log, which nobody can change unnoticed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from edgekit.errors import EdgekitError, VerificationError
from edgekit.mqtt.messages import Event, Reported, Running
from edgekit.rollout.cohort import Cohort, Device
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.values import Aborted, Paused, Resumed
from edgekit.state import FleetState, open_fleet_state
from edgekit.state.audit import FIRST
from edgekit.trust.assignment import Entry
from tests.simulators.postgres import emptied, missing, running_postgres

NEW = "2" * 64


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    if "EDGEKIT_TEST_POSTGRES" in os.environ:
        yield os.environ["EDGEKIT_TEST_POSTGRES"]
        return
    if missing():
        pytest.skip(missing())
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    return emptied(request.getfixturevalue("postgres"))


@pytest.fixture
def state(url: str) -> Iterator[FleetState]:
    opened = open_fleet_state(url, "f", author="ann@desk")
    yield opened
    opened.close()


def use(state: FleetState) -> None:
    """Enroll, roll out, pause, resume, abort, send a command, save and remove a group."""
    for name in ("a", "b"):
        state.devices.enroll(Device(name, "t", "pem", {"site": "north"}, 1000.0))
    entry = Entry("p", 1, NEW, "m", "t", "1.0.0", 1)
    plan = RolloutPlan(parse_waves("1,100%"))
    rollout = state.rollouts.start("m", "1.0.0", {"t": entry}, now=1001.0, plan=plan, cohort=Cohort())
    state.rollouts.survey(rollout.id, 1002.0)
    state.rollouts.survey(rollout.id, 1003.0)  # changes nothing
    first = next(name for name, p in state.rollouts.get(rollout.id).devices.items() if p.assigned_at)
    state.devices.save_report(Reported(first, "f", 1, 0.0, 1, {"m": Running(NEW, "1.0.0")}, {}), 1004.0)
    state.rollouts.survey(rollout.id, 1005.0)
    state.rollouts.apply(rollout.id, Paused("lunch"), 1006.0)
    state.rollouts.apply(rollout.id, Resumed(), 1007.0)
    state.rollouts.apply(rollout.id, Aborted("enough"), 1008.0)
    state.commands.add("a", "self-test", now=1009.0, expires=1069.0)
    state.groups.save("north", "label.site == north", 1010.0)
    state.groups.save("north", "label.site == south", 1011.0)
    state.groups.remove("north", 1012.0)


def test_every_change_is_logged_with_before_and_after(state: FleetState) -> None:
    """Who, what and when; a survey that changes nothing is no change."""
    use(state)
    entries = state.audit.entries()[::-1]
    assert [one.what for one in entries] == [
        "device.enroll",
        "device.enroll",
        "rollout.start",
        "rollout.assign",
        "rollout.assign",
        "rollout.pause",
        "rollout.resume",
        "rollout.abort",
        "command.send",
        "group.save",
        "group.save",
        "group.remove",
    ]
    assert [one.number for one in entries] == list(range(1, 13))
    assert {one.who for one in entries} == {"ann@desk"}
    assert entries[0].after == {"target": "t", "labels": {"site": "north"}, "enrolled": 1000.0}
    start, first, second, pause = entries[2:6]
    assert (start.subject, start.before, start.at) == ("1", None, 1001.0)
    assert start.after["model"] == "m"
    assert (first.before["wave"], first.after["wave"]) == (1, 1)
    assert first.after["assigned"] + second.after["assigned"] in (["a", "b"], ["b", "a"])
    assert (pause.before["state"], pause.after["state"], pause.after["reason"]) == ("RUNNING", "PAUSED", "lunch")
    assert entries[7].after["reverted"] == second.after["assigned"]
    assert entries[10].before == {"filter": "label.site == north"}
    assert entries[11].after is None
    assert state.audit.verify() == (12, entries[-1].hash)
    assert state.audit.verify((3, entries[2].hash[:12])) == (12, entries[-1].hash)
    assert [one.what for one in state.audit.entries(what="group")] == ["group.remove", "group.save", "group.save"]
    assert [one.number for one in state.audit.entries(limit=2, before=5)] == [4, 3]
    assert [one.what for one in state.audit.entries(subject="a")] == ["command.send", "device.enroll"]


def test_a_refused_change_leaves_no_entry(state: FleetState) -> None:
    """The entry is part of the transaction."""
    state.devices.enroll(Device("a", "t", "pem", {}, 1000.0))
    with pytest.raises(EdgekitError):
        state.devices.enroll(Device("a", "t", "pem", {}, 1001.0))
    assert state.audit.verify()[0] == 1


def test_an_empty_log_is_whole(state: FleetState) -> None:
    """Its head is number 0; an entry that was noted elsewhere is missing in it."""
    assert state.audit.verify() == (0, FIRST)
    with pytest.raises(VerificationError, match="entry 3 was noted and is missing"):
        state.audit.verify((3, "a" * 8))


@pytest.mark.parametrize("statement", ["UPDATE audit SET who = 'bob'", "DELETE FROM audit WHERE number = 2"])
def test_the_database_refuses_changes(state: FleetState, statement: str) -> None:
    """Triggers make the table append-only for every client."""
    use(state)
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), state._engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert state.audit.verify()[0] == 12


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE audit SET who = 'bob' WHERE number = 3", "entry 3 of the audit log was changed"),
        ("UPDATE audit SET after = '{}' WHERE number = 6", "entry 6 of the audit log was changed"),
        ("UPDATE audit SET at = 1000.5 WHERE number = 1", "entry 1 of the audit log was changed"),
        ("DELETE FROM audit WHERE number = 4", "entry 4 of the audit log is missing; entry 5 follows"),
        ("DELETE FROM audit WHERE number > 9", "ends with entry 9; entry 11 was noted and is missing"),
        ("UPDATE audit SET number = number - 1 WHERE number > 4", "entry 4 of the audit log"),
    ],
)
def test_whoever_goes_round_the_triggers_is_noticed(state: FleetState, statement: str, says: str) -> None:
    """A changed, removed or inserted entry breaks the chain; a cut end needs a head that was noted elsewhere."""
    use(state)
    noted = state.audit.entries(before=12, limit=1)[0]
    with state._engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("DROP TRIGGER audit_no_change ON audit")
        else:
            connection.exec_driver_sql("DROP TRIGGER audit_no_update")
            connection.exec_driver_sql("DROP TRIGGER audit_no_delete")
        if statement.startswith("UPDATE audit SET number"):
            connection.exec_driver_sql("DELETE FROM audit WHERE number = 4")
            for number in range(5, 13):
                connection.exec_driver_sql(f"UPDATE audit SET number = {number - 1} WHERE number = {number}")
        else:
            connection.exec_driver_sql(statement)
    with pytest.raises(VerificationError, match=says):
        state.audit.verify((noted.number, noted.hash))


def test_an_entry_that_was_damaged_hides_no_other(state: FleetState) -> None:
    """The list shows its text as it is."""
    use(state)
    with state._engine.begin() as connection:
        name = "audit_no_change ON audit" if connection.dialect.name == "postgresql" else "audit_no_update"
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql("UPDATE audit SET after = '{\"broken' WHERE number = 2")
    entries = {entry.number: entry.after for entry in state.audit.entries(limit=100)}
    assert entries[2] == '{"broken'
    assert isinstance(entries[3], dict)


def test_entries_of_several_processes_form_one_chain(url: str) -> None:
    """Four writers at once: no number is missing or double."""
    opened = [open_fleet_state(url, "f", author=f"writer-{index}") for index in range(4)]
    faults: list[Exception] = []

    def write(state: FleetState) -> None:
        try:
            for number in range(5):
                state.commands.add("a", "self-test", now=1000.0 + number, expires=2000.0)
        except Exception as error:  # a thread's own failure would pass unseen
            faults.append(error)

    threads = [threading.Thread(target=write, args=(state,)) for state in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert faults == []
    assert opened[0].audit.verify()[0] == 20
    assert len({one.who for one in opened[0].audit.entries()}) == 4
    for state in opened:
        state.close()


def test_fleets_have_chains_of_their_own(url: str, state: FleetState) -> None:
    """One database may hold several fleets."""
    other = open_fleet_state(url, "g")
    use(state)
    other.devices.enroll(Device("a", "t", "pem", {}, 1.0))
    assert (state.audit.verify()[0], other.audit.verify()[0]) == (12, 1)
    other.close()


def test_a_noisy_device_pushes_out_only_its_own_events_and_commands(state: FleetState) -> None:
    """A thousand events of one device leave the one event of another; strangers share one bounded place."""
    from edgekit.state import DeviceTable

    table = DeviceTable(state._engine, "f", max_events=5)
    table.add_event(Event("quiet", "deployment-failed", 0.0), 1.0)
    for index in range(30):
        table.add_event(Event("noisy", f"k{index}", 0.0), 2.0 + index)
    assert [one.kind for one in table.events("noisy", limit=100)] == ["k29", "k28", "k27", "k26", "k25"]
    assert [one.kind for one in table.events("quiet")] == ["deployment-failed"]
    for index in range(12):
        table.add_event(Event(f"stranger-{index}", "unknown-device", 0.0), 50.0 + index)
    assert len([one for one in table.events(limit=100) if one.kind == "unknown-device"]) == 5
    assert [one.kind for one in table.events("quiet")] == ["deployment-failed"]
