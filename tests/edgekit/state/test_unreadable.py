"""A row that cannot be read stops only what it belongs to; late reports reach rollouts that have ended."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import DataError, NotFoundError, RefusedError, SettingsError
from edgekit.mqtt.messages import Outcome, Reported, Running, Waiting
from edgekit.rollout.cohort import Cohort, Device
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.values import Aborted, DeviceState, Paused, Rollout, RolloutState
from edgekit.state import FleetState, open_fleet_state
from edgekit.trust.assignment import Entry

OLD, NEW = "1" * 64, "2" * 64


@pytest.fixture
def state(tmp_path: Path) -> Iterator[FleetState]:
    opened = open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "f")
    yield opened
    opened.close()


def entry(digest: str, version: str = "1.0.0", model: str = "m") -> Entry:
    return Entry(f"models/{model}/t/{version}/manifest.json", 9, digest, model, "t", version, 1)


def enroll(state: FleetState, *names: str) -> None:
    for name in names:
        state.devices.enroll(Device(name, "t", "pem", {"site": "north"}, time.time()))


def start(state: FleetState, digest: str = NEW, model: str = "m", **plan: float) -> Rollout:
    whole = RolloutPlan(parse_waves("100%"), **plan)  # type: ignore[arg-type]
    return state.rollouts.start(
        model, "1.0.0", {"t": entry(digest, model=model)}, plan=whole, cohort=Cohort(), now=1000.0
    )


def change(state: FleetState, statement: str) -> None:
    with state._engine.connect() as connection, connection.begin():
        assert connection.exec_driver_sql(statement).rowcount == 1


def said(
    state: FleetState, name: str, number: int, running: Running, outcome: Outcome | None = None, at: float = 0.0
) -> None:
    outcomes = {"m": outcome} if outcome else {}
    state.devices.save_report(Reported(name, "f", number, 0.0, 1, {"m": running}, outcomes), at)


BROKEN = {
    "plan": "UPDATE rollouts SET body = replace(body, '\"device_deadline_seconds\":600.0', "
    "'\"device_deadline_seconds\":null') WHERE id = 1",
    "body": "UPDATE rollouts SET body = '{\"id\":' WHERE id = 1",
    "bundles": "UPDATE rollouts SET entries = '[]' WHERE id = 1",
    "device": "UPDATE rollout_devices SET progress = '{\"state\":\"LOST\"}' WHERE rollout = 1 AND device = 'a'",
}


@pytest.mark.parametrize("what", BROKEN)
def test_one_unreadable_row_stops_only_its_own_rollout(state: FleetState, what: str) -> None:
    """It is shown as unreadable, other rollouts start and go on, and it can be aborted."""
    enroll(state, "a", "b")
    broken = start(state)
    state.rollouts.survey(broken.id, 1001.0)
    change(state, BROKEN[what])
    (shown,) = state.rollouts.all()
    assert (shown.id, shown.model, shown.version, shown.state) == (1, "m", "1.0.0", RolloutState.RUNNING)
    assert shown.fault
    assert state.rollouts.survey(1, 1002.0).fault
    assert state.rollouts.missing_targets(1, 1002.0) == [] or what == "device"
    with pytest.raises(RefusedError, match="cannot be read"):
        state.rollouts.apply(1, Paused(), 1002.0)
    other = start(state, "3" * 64, "other")
    assert state.rollouts.survey(other.id, 1003.0).counts()["TOLD"] == 2
    ended = state.rollouts.apply(1, Aborted(), 1004.0)
    assert ended.state is RolloutState.ABORTED
    assert [one.id for one in state.rollouts.active()] == [other.id]
    assert state.rollouts.get(1).state is RolloutState.ABORTED
    assert start(state).id == 3, "the model is free again"
    assert "m" not in state.assignments.get("b").entries, "what could be read was reverted"  # type: ignore[union-attr]


def test_unreadable_rows_of_devices_concern_that_device(state: FleetState) -> None:
    """Labels, a report, telemetry and an assignment that cannot be read: other devices are assigned and listed."""
    enroll(state, "a", "b", "c")
    for name in ("a", "b", "c"):
        said(state, name, 1, Running(digest=OLD), at=1000.0)
    first = start(state, "4" * 64, "first")
    state.rollouts.survey(first.id, 1001.0)
    change(state, "UPDATE devices SET labels = '{' WHERE name = 'a'")
    change(state, "UPDATE reports SET body = 'no json' WHERE device = 'b'")
    change(state, "UPDATE assignments SET entries = '[1]' WHERE device = 'c'")
    change(state, "UPDATE presence SET telemetry = 'none' WHERE device = 'a'")
    views = {view.device: view for view in state.devices.views(1002.0, 90.0)}
    assert "its labels" in views["a"].fault
    assert "its report" in views["b"].fault
    assert "its assignment" in views["c"].fault
    rollout = start(state, min_failures=9)
    surveyed = state.rollouts.survey(rollout.id, 1002.0)
    assert surveyed.devices["c"].state is DeviceState.FAILED
    assert "the stored assignment of c cannot be read" in surveyed.devices["c"].reason
    assert state.rollouts.get(rollout.id) == surveyed
    assert [one.device for one in state.assignments.unsigned(0.0)] == ["a", "b"]
    assert all(set(one.entries) == {"first", "m"} for one in state.assignments.unsigned(0.0))
    assert state.rollouts.apply(rollout.id, Aborted(), 1003.0).state is RolloutState.ABORTED


def test_numbers_that_the_database_cannot_hold_are_errors_with_a_reason(state: FleetState) -> None:
    """No raw SQL error comes out, and nothing is stored."""
    enroll(state, "a")
    for expires in (math.nan, math.inf, 1e300):
        with pytest.raises(SettingsError, match="expires"):
            state.commands.add("a", "self-test", now=1000.0, expires=expires)
    for number in (2**63, 2**31, 10**30, -1, 0):
        with pytest.raises(NotFoundError, match="no rollout"):
            state.rollouts.get(number)
    with pytest.raises(SettingsError, match="enrolled is nan"):
        state.devices.enroll(Device("b", "t", "pem", enrolled=math.nan))
    with pytest.raises(DataError, match="refuses a value"):
        state.devices.save_report(Reported("a", "f", 1, 0.0, 1, {}, {}), math.nan)
    assert [device.name for device in state.devices.all()] == ["a"]


# --- after the end


def test_devices_are_watched_after_the_end(state: FleetState) -> None:
    """A silent device installs the next day: its rollout shows a late success and stays finished."""
    enroll(state, "a", "b")
    rollout = start(state, error_threshold=1.0, success_threshold=0.5)
    state.rollouts.survey(rollout.id, 1001.0)
    said(state, "a", 1, Running(digest=NEW), at=1002.0)
    assert state.rollouts.survey(rollout.id, 1700.0).state is RolloutState.FINISHED
    assert state.rollouts.watch_ended(1800.0, 0.0) == []
    said(state, "b", 1, Running(digest=NEW), at=90_000.0)
    assert state.rollouts.watch_ended(90_001.0, 89_990.0) == [rollout.id]
    watched = state.rollouts.get(rollout.id)
    assert watched.devices["b"].late
    assert watched.devices["b"].at == 90_001.0
    assert (watched.state, watched.counts()["SUCCEEDED"]) == (RolloutState.FINISHED, 2)
    assert state.rollouts.watch_ended(90_002.0, 89_990.0) == []


def test_an_abort_is_undone_for_a_device_that_had_activated_before(state: FleetState) -> None:
    """Its assignment names what it runs again, so it refuses nothing; a later assignment stays as it is."""
    enroll(state, "a", "b")
    first = start(state, OLD)
    state.rollouts.survey(first.id, 1001.0)
    for name in ("a", "b"):
        said(state, name, 1, Running(digest=OLD), at=1002.0)
    state.rollouts.survey(first.id, 1003.0)
    second = start(state, NEW)
    state.rollouts.survey(second.id, 1004.0)
    state.rollouts.apply(second.id, Aborted(), 1005.0)
    assert state.assignments.get("a").entries["m"].sha256 == OLD  # type: ignore[union-attr]
    refused = Outcome(OLD, "1.0.0", "refused", "DowngradeError", "older", 1006.0)
    said(state, "a", 2, Running(digest=NEW), refused, at=1006.0)
    assert state.rollouts.watch_ended(1007.0, 1000.0) == [second.id]
    assert state.assignments.get("a").entries["m"].sha256 == NEW  # type: ignore[union-attr]
    assert state.rollouts.get(second.id).devices["a"].verdict is DeviceState.ASSIGNED
    third = start(state, "3" * 64)
    state.rollouts.survey(third.id, 1008.0)
    said(state, "b", 2, Running(digest=NEW), at=1009.0)
    assert state.rollouts.watch_ended(1010.0, 1000.0) == []
    assert state.assignments.get("b").entries["m"].sha256 == "3" * 64  # type: ignore[union-attr]


def test_waiting_devices_are_stored_and_read_back(state: FleetState) -> None:
    """The reason and the time come from the report; the deadline stops."""
    enroll(state, "a")
    rollout = start(state)
    state.rollouts.survey(rollout.id, 1001.0)
    said(state, "a", 1, Running(digest=OLD, waiting=Waiting("metered", 5.0, NEW)), at=1002.0)
    surveyed = state.rollouts.survey(rollout.id, 9000.0)
    assert surveyed.devices["a"].state is DeviceState.WAITING
    assert state.rollouts.get(rollout.id) == surveyed
    (active,) = state.rollouts.active()
    assert active.wake_at == 9000.0 + 172_800.0
