"""Removing, re-keying, labelling and quarantining devices: what it changes, and that it is audited."""

import os

import pytest
import sqlalchemy as sa

from edgekit.errors import NotFoundError, RefusedError, SettingsError
from edgekit.identity.join import StoredCode
from edgekit.mqtt.messages import Presence, Reported
from edgekit.rollout.cohort import Cohort, Device
from edgekit.rollout.values import RolloutState
from edgekit.state import open_fleet_state
from edgekit.state.backup import dump_database, load_database
from edgekit.trust.assignment import Entry
from tests.simulators.postgres import emptied, missing, running_postgres

ENTRY = Entry("p", 1, "2" * 64, "m", "t", "1.0.0", 1)


@pytest.fixture(scope="module")
def postgres():
    if "EDGEKIT_TEST_POSTGRES" in os.environ:
        yield os.environ["EDGEKIT_TEST_POSTGRES"]
        return
    if missing():
        pytest.skip(missing())
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request, tmp_path):
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'fleet.db'}" if sqlite else emptied(request.getfixturevalue("postgres"))
    opened = open_fleet_state(url, "f", author="ann@desk")
    for name in ("a", "b"):
        opened.devices.enroll(Device(name, "t", f"pem {name}", {"site": "north"}, 1000.0))
        opened.devices.save_report(Reported(name, "f", 50, 0.0, 1, {}, {}, command=3), 1000.0, payload=b"signed")
        opened.devices.save_presence(name, Presence(True, 7), 1000.0)
    yield opened
    opened.close()


def changes(state, name):
    return [entry.what for entry in state.audit.entries(subject=name)][::-1]


def test_removed_device_leaves_everything_but_its_history(state):
    """It is in no list, rollout or standing assignment; its command is ended; a rollout goes on without it."""
    rollout = state.rollouts.start("m", "1.0.0", {"t": ENTRY}, now=1001.0)
    state.rollouts.survey(rollout.id, 1002.0)
    assert set(state.rollouts.get(rollout.id).devices) == {"a", "b"}
    asked = state.commands.add("a", "self-test", now=1002.0, expires=9000.0)
    state.lifecycle.remove("a", 1003.0)
    assert [one.name for one in state.devices.all()] == ["b"]
    assert state.assignments.get("a") is None
    assert set(state.rollouts.survey(rollout.id, 1004.0).devices) == {"b"}
    assert state.commands.get("a", asked.number).state == "expired"
    state.standing.add("m2", {"t": ENTRY}, now=1005.0, version="1.0.0")
    assert state.standing.apply(1006.0) == {1: ["b"]}
    assert state.lifecycle.refused()["a"].removed
    assert changes(state, "a") == ["device.enroll", "command.send", "device.remove"]
    with pytest.raises(NotFoundError, match="no device 'a'"):
        state.lifecycle.remove("a", 1007.0)
    state.devices.enroll(Device("a", "t", "pem new", {}, 1008.0))
    assert state.lifecycle.refused() == {}
    assert state.devices.numbers("a").report == 0


def test_new_key_forgets_the_numbers_of_the_old_one(state):
    """Otherwise a device with a new key and a new disk would be dropped."""
    state.lifecycle.rekey("a", "pem new", 1001.0)
    assert state.devices.get("a").public_key == "pem new"
    numbers = state.devices.numbers("a")
    assert (numbers.report, numbers.session, numbers.payload) == (0, 0, b"")
    assert state.devices.save_report(Reported("a", "f", 1, 0.0, 1, {}, {}), 1002.0)
    with pytest.raises(SettingsError, match="has this key already"):
        state.lifecycle.rekey("a", "pem new\n", 1003.0)
    assert changes(state, "a") == ["device.enroll", "device.rekey"]


def test_labels_change_and_filters_follow(state):
    """A label is set, changed and removed; the rows of filters agree."""
    assert state.lifecycle.label("a", {"site": "south", "ring": "1"}, 1001.0) == {"site": "south", "ring": "1"}
    found = state.devices.views(1001.0, 90.0, cohort=Cohort(filter="label.site == south and label.ring == 1"))
    assert [view.device for view in found] == ["a"]
    assert state.lifecycle.label("a", {"ring": None}, 1002.0) == {"site": "south"}
    with pytest.raises(NotFoundError, match="its labels are site"):
        state.lifecycle.label("a", {"ring": None}, 1003.0)
    assert changes(state, "a") == ["device.enroll", "device.label", "device.label"]


def test_quarantined_device_gets_nothing_until_its_end(state):
    """No rollout, no assignment, no command; afterwards its assignment is published again."""
    rollout = state.rollouts.start("m", "1.0.0", {"t": ENTRY}, now=1001.0)
    state.rollouts.survey(rollout.id, 1002.0)
    state.assignments.signed("a", 2, b"payload", 9e9)
    state.assignments.published("a", 2)
    assert state.lifecycle.quarantine("a", "two devices", 1003.0)
    assert not state.lifecycle.quarantine("a", "again", 1003.0)
    (view,) = state.devices.views(1003.0, 90.0, "a")
    assert view.quarantine == "two devices"
    assert set(state.rollouts.survey(rollout.id, 1004.0).devices) == {"b"}
    assert state.rollouts.get(rollout.id).state is RolloutState.RUNNING
    assert {one.device for one in (*state.assignments.all(), *state.assignments.unsigned(9e10))} == {"b"}
    with pytest.raises(RefusedError, match="in quarantine"):
        state.commands.add("a", "self-test", now=1004.0, expires=9e9)
    refused = state.lifecycle.refused()["a"]
    assert (refused.removed, refused.told, "two devices" in refused.reason) == (False, False, True)
    state.lifecycle.told("a")
    assert state.lifecycle.refused()["a"].told
    assert state.lifecycle.release("a", 1006.0)
    assert not state.lifecycle.release("a", 1006.0)
    assert {one.device for one in state.assignments.all()} == {"a", "b"}
    state.commands.add("a", "self-test", now=1006.5, expires=9e9)
    assert [one.device for one in state.commands.to_send(1007.0)] == ["a"]
    assert changes(state, "a")[-2:] == ["device.release", "command.send"]


def test_backup_moves_between_kinds_and_keeps_counting(state, tmp_path, request):
    """A backup of one kind of database is restored into the other; new rows get new numbers; the audit log is whole."""
    state.standing.add("m2", {"t": ENTRY}, now=1005.0, version="1.0.0")
    state.commands.add("a", "self-test", now=1004.0, expires=9e9)
    head = state.audit.verify()
    (tmp_path / "dump").mkdir()
    revision, counts = dump_database(state._engine, tmp_path / "dump")
    assert counts["devices"] == 2
    sqlite = f"sqlite:///{tmp_path / 'second.db'}"
    other = sqlite if state._engine.dialect.name == "postgresql" else emptied(request.getfixturevalue("postgres"))
    assert load_database(other, tmp_path / "dump", revision) == counts
    with pytest.raises(SettingsError, match="is not empty"):
        load_database(other, tmp_path / "dump", revision)
    second = open_fleet_state(other, "f")
    assert second.audit.verify() == head
    assert second.devices.numbers("a") == state.devices.numbers("a")
    assert second.standing.add("m3", {"t": ENTRY}, now=1006.0, version="1.0.0").id == 2
    assert second.commands.add("a", "self-test", now=1006.0, expires=9e9).number > 3
    with pytest.raises(sa.exc.DatabaseError), second._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM audit")
    second.close()


@pytest.mark.parametrize(
    "labels",
    [{"k" * 64: "v"}, {"": "v"}, {"a b": "v"}, {"a\tb": "v"}, {"site": "v" * 256}, {"site": "\x1b[31mred"}],
    ids=["long key", "no key", "blank", "tab", "long value", "escape sequence"],
)
def test_labels_that_no_filter_can_select_by_are_refused(state, labels):
    """They were cut to the size of a column, where two of them could be one, and shown in terminals as they are."""
    with pytest.raises(SettingsError, match="label"):
        state.lifecycle.label("a", labels, 2000.0)
    with pytest.raises(SettingsError, match="label"):
        state.devices.enroll(Device("c", "t", "pem c", labels, 2000.0))
    with pytest.raises(SettingsError, match="label"):
        state.certificates.add_code(StoredCode("aaaaaaaa", b"k", 5000.0, 1, labels=labels), 2000.0)
    assert state.devices.get("a").labels == {"site": "north"}
    state.lifecycle.label("a", {"ort": "Z\u00fcrich \U0001f3d4"}, 2000.0)
