"""Events of deployments that no controller heard are known from the next report, once each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.mqtt.messages import Event, Outcome, Reported, Running
from edgekit.rollout.cohort import Device
from edgekit.state import FleetState, open_fleet_state

DIGESTS = {"1.0.0": "a" * 64, "1.1.0": "b" * 64}


@pytest.fixture
def state(tmp_path: Path) -> Iterator[FleetState]:
    with contextlib.closing(open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "lab")) as state:
        state.devices.enroll(Device("pi-1", "raspberry-pi-4", "", enrolled=1.0))
        yield state


def report(state: FleetState, number: int, version: str, at: float, result: str = "succeeded", error: str = "") -> None:
    """Store a report of a device whose last deployment has ended at `at`, by its clock."""
    digest = DIGESTS[version]
    models = {"digits": Running(digest, version, since=at)} if result == "succeeded" else {}
    outcome = Outcome(digest, version, result, error, "", at)
    state.devices.save_report(Reported("pi-1", "lab", number, at, 1, models, {"digits": outcome}), 1000.0 + number)


def sent(version: str, at: float) -> Event:
    """The event that a device sends when a deployment has succeeded."""
    return Event("pi-1", "deployment-succeeded", at, "digits", detail={"version": version, "digest": DIGESTS[version]})


def stored(state: FleetState) -> list[tuple[str, str]]:
    """Kind and version of each stored event, the oldest first."""
    return [(one.kind, one.detail["version"]) for one in reversed(state.devices.events("pi-1"))]


def test_a_report_tells_what_no_controller_heard(state: FleetState) -> None:
    """Two deployments, the first one seen by its event; heartbeats tell nothing more; a failure counts too."""
    state.devices.add_event(sent("1.0.0", 10.0), 1000.0)
    report(state, 1, "1.0.0", 10.0)
    report(state, 2, "1.1.0", 20.0)
    report(state, 3, "1.1.0", 20.0)
    expected = [("deployment-succeeded", "1.0.0"), ("deployment-succeeded", "1.1.0")]
    assert stored(state) == expected
    report(state, 4, "1.0.0", 30.0, "failed", "SelfTestError")
    assert stored(state) == [*expected, ("deployment-failed", "1.0.0")]
    assert state.devices.events("pi-1")[0].error == "SelfTestError"


def test_an_event_that_comes_after_the_report_is_not_stored_again(state: FleetState) -> None:
    """It has the time of the outcome. A second deployment of the same bundle has another one."""
    report(state, 1, "1.0.0", 10.0)
    state.devices.add_event(sent("1.0.0", 10.0), 1001.0)
    assert stored(state) == [("deployment-succeeded", "1.0.0")]
    report(state, 2, "1.1.0", 20.0)
    report(state, 3, "1.0.0", 30.0)
    state.devices.add_event(sent("1.0.0", 30.0), 1003.0)
    assert [version for _, version in stored(state)] == ["1.0.0", "1.1.0", "1.0.0"]


def test_events_of_older_agents_count_although_their_time_is_a_little_later(state: FleetState) -> None:
    """They have the time of sending."""
    state.devices.add_event(sent("1.0.0", 11.5), 1000.0)
    report(state, 1, "1.0.0", 10.0)
    assert stored(state) == [("deployment-succeeded", "1.0.0")]


def test_a_success_that_a_device_says_again_is_no_second_one(state: FleetState) -> None:
    """After it refused to go back, a device reports again that its bundle runs, with the time of its activation."""
    state.devices.add_event(sent("1.1.0", 60.0), 1000.0)
    report(state, 1, "1.1.0", 60.0)
    report(state, 2, "1.0.0", 61.0, "refused", "DowngradeError")
    report(state, 3, "1.1.0", 30.0)
    assert stored(state) == [("deployment-succeeded", "1.1.0"), ("deployment-refused", "1.0.0")]
