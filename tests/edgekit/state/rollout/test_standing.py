"""Standing assignments: who gets them, at which rate, and who does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import NotFoundError, SettingsError
from edgekit.mqtt.messages import Reported, Running
from edgekit.rollout.allowance import Allowance
from edgekit.rollout.cohort import Cohort, Device
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.values import Aborted
from edgekit.state import FleetState, open_fleet_state
from edgekit.trust.assignment import Entry
from tests.simulators.control import ControlSide


@pytest.fixture
def state(tmp_path: Path) -> Iterator[FleetState]:
    opened = open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "f", author="ann@desk")
    yield opened
    opened.close()


def entry(version: str = "1.0.0", model: str = "m") -> Entry:
    return Entry("p", 1, version[0] * 64, model, "t", version, 1)


def enroll(state: FleetState, *names: str, target: str = "t", **labels: str) -> None:
    for name in names:
        state.devices.enroll(Device(name, target, "pem", labels, 1000.0))


def assigned(state: FleetState) -> dict[str, dict[str, str]]:
    return {one.device: {name: e.version for name, e in one.entries.items()} for one in state.assignments.all()}


def test_new_devices_get_it_and_others_keep_what_they_have(state: FleetState) -> None:
    """Once each; another model and another target are untouched."""
    enroll(state, "a", "b")
    enroll(state, "x", target="other")
    made = state.standing.add("m", {"t": entry()}, now=1000.0, version="1.0.0")
    assert state.standing.apply(1001.0) == {made.id: ["a", "b"]}
    assert state.standing.apply(1002.0) == {}
    state.standing.add("path", {"t": entry("3.0.0", "path")}, now=1002.0, version="3.0.0")
    enroll(state, "c")
    assert state.standing.apply(1003.0) == {1: ["c"], 2: ["a", "b", "c"]}
    assert assigned(state)["c"] == {"m": "1.0.0", "path": "3.0.0"}
    assert "x" not in assigned(state)


def test_the_rate_of_the_cohort_holds(state: FleetState) -> None:
    """60 an hour: six at once, then one a minute; a clock that was set back gives nothing."""
    enroll(state, *(f"d-{index:02}" for index in range(20)))
    state.standing.add("m", {"t": entry()}, now=1000.0, version="1.0.0", per_hour=60)
    counts = [len(state.standing.apply(now).get(1, [])) for now in (1000.0, 1030.0, 1060.0, 1120.0, 500.0, 1300.0)]
    assert counts == [6, 0, 1, 1, 0, 3]


def test_a_clock_that_was_ahead_stops_no_rate(state: FleetState) -> None:
    """A day ahead, it gave what it might; set right, the rate goes on and not only after a day."""
    enroll(state, *(f"d-{index:02}" for index in range(20)))
    state.standing.add("m", {"t": entry()}, now=1000.0, version="1.0.0", per_hour=60)
    counts = [len(state.standing.apply(now).get(1, [])) for now in (87_400.0, 1100.0, 1160.0, 1220.0)]
    assert counts == [6, 0, 1, 1]


def test_an_allowance_never_exceeds_its_rate() -> None:
    """Whatever the times: in every hour at most the rate and the burst of six minutes."""
    bucket, given = Allowance.start(30.0), 0
    for second in range(0, 7200, 7):
        bucket = bucket.at(float(second))
        while bucket.whole:
            bucket, given = bucket.taken(), given + 1
    assert 60 <= given <= 60 + 3


def test_a_cohort_selects_by_labels_and_filters(state: FleetState) -> None:
    """The first standing assignment of a model counts for a device."""
    enroll(state, "a", site="north")
    enroll(state, "b", site="south")
    state.standing.add("m", {"t": entry("2.0.0")}, now=1.0, version="2.0.0", cohort=Cohort(labels={"site": "north"}))
    state.standing.add("m", {"t": entry()}, now=1.0, version="1.0.0", cohort=Cohort(filter="not waiting"))
    state.standing.apply(1001.0)
    assert assigned(state) == {"a": {"m": "2.0.0"}, "b": {"m": "1.0.0"}}


def test_devices_of_a_rollout_belong_to_it(state: FleetState) -> None:
    """While it runs; after its end, who has nothing gets the standing assignment."""
    enroll(state, "a", "b")
    plan = RolloutPlan(parse_waves("1,100%"))
    rollout = state.rollouts.start("m", "2.0.0", {"t": entry("2.0.0")}, now=1000.0, plan=plan, cohort=Cohort())
    state.rollouts.survey(rollout.id, 1000.0)
    state.standing.add("m", {"t": entry()}, now=1000.0, version="1.0.0")
    assert state.standing.apply(1001.0) == {}
    state.rollouts.apply(rollout.id, Aborted(), 1002.0)
    assert state.standing.apply(1003.0) == {1: ["a", "b"]}


def test_who_would_refuse_it_is_left_out(state: FleetState) -> None:
    """A device that comes back with a newer version keeps it."""
    enroll(state, "a")
    said = Reported("a", "f", 1, 0.0, 1, {"m": Running("9" * 64, "9.0.0", highest="9.0.0")}, {})
    state.devices.save_report(said, 1000.0)
    state.standing.add("m", {"t": entry()}, now=1000.0, version="1.0.0")
    assert state.standing.apply(1001.0) == {}


def test_changes_are_in_the_audit_log(state: FleetState) -> None:
    """Adding, new bundles, giving and removing; a second one for the same devices is refused."""
    enroll(state, "a")
    state.standing.add("m", {"t": entry()}, now=1000.0, channel="stable")
    with pytest.raises(SettingsError, match="standing assignment 1 gives these devices m from channel stable"):
        state.standing.add("m", {"t": entry()}, now=1000.0, version="1.0.0")
    state.standing.set_entries(1, {"t": entry()}, 1001.0)
    state.standing.set_entries(1, {"t": entry("2.0.0")}, 1002.0)
    state.standing.apply(1003.0)
    state.standing.remove(1, 1004.0)
    with pytest.raises(NotFoundError):
        state.standing.remove(1, 1005.0)
    logged = state.audit.entries(what="assign")[::-1]
    assert [one.what for one in logged] == ["assign.add", "assign.bundles", "assign.give", "assign.remove"]
    assert logged[2].after["devices"] == ["a"]
    assert assigned(state) == {"a": {"m": "2.0.0"}}


async def test_a_live_controller_gives_it_to_who_enrolls_after_the_rollout(tmp_path: Path) -> None:
    """The device installs it; when the channel moves on, later devices get the newer version."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        side.repository.mark("digits", "1.0.0", channel="stable")
        first = await side.device("pi-1")
        reader = side.reader()
        entries = {"raspberry-pi-4": reader.resolve("digits", "raspberry-pi-4", channel="stable").entry}
        side.state.standing.add("digits", entries, now=side.clock.wall(), channel="stable")
        await side.until(lambda: "digits" in first.models)
        side.publish("digits", "1.1.0")
        side.repository.mark("digits", "1.1.0", channel="stable")
        assert side.controller is not None
        side.controller.standing.refresh_now()
        await side.until(lambda: side.state.standing.all()[0].entries["raspberry-pi-4"].version == "1.1.0")
        second = await side.device("pi-2")
        await side.until(lambda: "digits" in second.models)
        assert second.models["digits"].version == "1.1.0"
        await asyncio.sleep(0.1)
        assert first.models["digits"].version == "1.0.0"
