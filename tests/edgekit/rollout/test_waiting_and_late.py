"""Devices that wait on purpose, devices that succeed after a decision, and decisions that stay as they were."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import RefusedError, SettingsError
from edgekit.mqtt.messages import Outcome, Running, Waiting
from edgekit.rollout.machine import step
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.values import (
    Aborted,
    Assign,
    DeviceState,
    DeviceStatus,
    Effect,
    Keep,
    Resumed,
    Revert,
    Rollout,
    RolloutEvent,
    RolloutState,
    Started,
    Surveyed,
)

NEW, OLD = "a" * 64, "b" * 64
HOUR = 3600.0


def runs(digest: str = OLD, waiting: Waiting | None = None) -> DeviceStatus:
    return DeviceStatus(digest=NEW, running=Running(digest=digest, waiting=waiting))


def waits(reason: str = "quiet-hours", digest: str = NEW) -> DeviceStatus:
    return runs(OLD, Waiting(reason, 1.0, digest))


def failed(result: str = "refused", at: float = 5.0, digest: str = OLD) -> DeviceStatus:
    outcome = Outcome(deployment=NEW, version="1.1.0", result=result, error="SelfTestError", message="wrong", at=at)
    return DeviceStatus(digest=NEW, running=Running(digest=digest), outcome=outcome)


class Story:
    """A rollout with the effects that it returned, at a time of its own."""

    def __init__(self, devices: int, waves: str = "10%,50%,100%", **plan: Any) -> None:
        self.now = 1000.0
        self.state = Rollout(id=7, model="digits", version="1.1.0", plan=RolloutPlan(parse_waves(waves), **plan))
        self.effects: list[Effect] = []
        self.wake_at: float | None = None
        self.take(Started())
        self.take(Surveyed(dict.fromkeys([f"d-{i}" for i in range(devices)], runs())))

    def take(self, event: RolloutEvent, passed: float = 0.0) -> tuple[Effect, ...]:
        self.now += passed
        result = step(self.state, event, self.now)
        self.state, self.wake_at = result.state, result.wake_at
        self.effects += result.effects
        return result.effects

    def see(self, name: str, status: DeviceStatus, passed: float = 0.0) -> tuple[Effect, ...]:
        return self.take(Surveyed({name: status}), passed)

    @property
    def assigned(self) -> list[str]:
        return [effect.device for effect in self.effects if isinstance(effect, Assign)]

    def device(self, name: str) -> DeviceState:
        return self.state.devices[name].state


# --- waiting


def test_a_device_that_waits_on_purpose_is_neither_a_success_nor_a_failure() -> None:
    """Its deadline does not run, and the rollout goes on waiting for it."""
    story = Story(1, device_deadline_seconds=600)
    story.see("d-0", waits(), 10)
    assert story.device("d-0") is DeviceState.WAITING
    assert story.state.devices["d-0"].reason == "quiet-hours"
    story.take(Surveyed(), 10 * HOUR)
    assert story.state.state is RolloutState.RUNNING
    story.see("d-0", runs(NEW), 60)
    assert story.state.state is RolloutState.FINISHED
    assert not story.state.devices["d-0"].late


def test_only_the_time_without_a_wait_counts_towards_the_deadline() -> None:
    """10 seconds before and 590 after a night of quiet hours are the deadline of 600 seconds."""
    story = Story(1, device_deadline_seconds=600)
    story.see("d-0", waits(), 10)
    story.see("d-0", runs(OLD), 8 * HOUR)
    assert story.device("d-0") is DeviceState.ASSIGNED
    assert story.wake_at == story.now + 590
    story.take(Surveyed(), 589)
    assert story.device("d-0") is DeviceState.ASSIGNED
    story.take(Surveyed(), 1)
    assert story.device("d-0") is DeviceState.FAILED
    assert story.state.devices["d-0"].reason.startswith("silent")


def test_silence_stays_failure() -> None:
    """A device that has said nothing since its assignment fails at its deadline, although others wait."""
    story = Story(2, "100%", device_deadline_seconds=600, error_threshold=0.5)
    story.see("d-0", waits())
    story.take(Surveyed(), 600)
    assert (story.device("d-0"), story.device("d-1")) == (DeviceState.WAITING, DeviceState.FAILED)


def test_who_waits_longer_than_the_plan_allows_is_not_reached_and_others_take_the_place() -> None:
    """The canary is parked in a basement: the next device becomes the canary, and its success begins the wave."""
    story = Story(10, max_wait_seconds=HOUR)
    (canary,) = story.assigned
    story.see(canary, waits("metered"))
    assert story.wake_at == story.now + HOUR
    story.take(Surveyed(), HOUR)
    assert story.device(canary) is DeviceState.NOT_REACHED
    assert len(story.assigned) == 2
    story.see(story.assigned[1], runs(NEW))
    for name in list(story.assigned[2:]):
        story.see(name, runs(NEW))
    for name in list(story.assigned[6:]):
        story.see(name, runs(NEW))
    assert story.state.state is RolloutState.FINISHED
    assert story.state.counts()["NOT_REACHED"] == 1
    assert story.state.counts()["SUCCEEDED"] == 9


def test_several_short_waits_add_up() -> None:
    """A device that alternates between waiting and working is not reached when its waits together are too long."""
    story = Story(1, max_wait_seconds=HOUR, device_deadline_seconds=600)
    for _ in range(3):
        story.see("d-0", waits(), 1)
        story.see("d-0", runs(OLD), 1000)
    story.see("d-0", waits(), 1)
    assert story.wake_at == story.now + 600
    story.take(Surveyed(), 600)
    assert story.device("d-0") is DeviceState.NOT_REACHED


def test_a_rollout_that_reached_nobody_is_not_finished() -> None:
    """Nothing was shown, so it pauses with that reason; an operator may accept it."""
    story = Story(1, max_wait_seconds=HOUR)
    story.see("d-0", waits())
    story.take(Surveyed(), HOUR)
    assert story.state.state is RolloutState.PAUSED
    assert "reached no device" in story.state.reason
    story.take(Resumed())
    assert story.state.state is RolloutState.FINISHED


def test_waiting_devices_do_not_dilute_failures() -> None:
    """The share of failures is taken of the devices that could fail."""
    story = Story(20, "100%", error_threshold=0.5, min_failures=2)
    for index in range(17):
        story.see(f"d-{index}", waits())
    story.see("d-17", failed())
    story.see("d-18", failed())
    assert story.state.state is RolloutState.PAUSED
    assert "2 of 3 assigned devices failed" in story.state.reason


def test_a_wait_with_another_bundle_does_not_count() -> None:
    """The device has not seen this rollout's assignment yet, so its deadline runs."""
    story = Story(1)
    story.see("d-0", waits(digest=OLD))
    assert story.device("d-0") is DeviceState.ASSIGNED


def test_abort_reaches_devices_that_wait_or_were_not_reached() -> None:
    """They have the assignment, and would install the bundle later."""
    story = Story(3, "100%", max_wait_seconds=HOUR)
    story.see("d-0", waits())
    story.take(Surveyed(), HOUR)
    story.see("d-1", waits())
    effects = story.take(Aborted())
    assert {effect.device for effect in effects if isinstance(effect, Revert)} == {"d-0", "d-1", "d-2"}


# --- decisions and what happens after them


def test_a_failure_that_became_a_success_is_shown_as_both() -> None:
    """The reason of the pause stays true for its time; the device has succeeded late."""
    story = Story(1, device_deadline_seconds=600)
    story.take(Surveyed(), 600)
    assert "1 of 1 assigned devices failed" in story.state.reason
    story.see("d-0", runs(NEW), 100)
    progress = story.state.devices["d-0"]
    assert (progress.state, progress.late, progress.at) == (DeviceState.SUCCEEDED, True, 1700.0)
    assert (progress.verdict, progress.verdict_at) == (DeviceState.FAILED, 1600.0)
    assert progress.verdict_reason.startswith("silent")
    assert story.state.decision is not None
    assert (story.state.decision.at, story.state.decision.counts) == (1600.0, {"FAILED": 1})
    assert story.state.counts()["SUCCEEDED"] == 1


def finished_with_a_silent_device() -> Story:
    story = Story(2, "100%", device_deadline_seconds=600, error_threshold=1.0, success_threshold=0.5)
    story.see("d-0", runs(NEW))
    story.take(Surveyed(), 600)
    assert story.state.state is RolloutState.FINISHED
    assert story.device("d-1") is DeviceState.FAILED
    return story


def test_a_device_that_installs_after_the_end_has_succeeded_late() -> None:
    """The rollout stays finished with one failure; the device is shown as it is, with both times."""
    story = finished_with_a_silent_device()
    decisions = story.state.decisions
    assert story.see("d-1", runs(NEW), 9 * HOUR) == ()
    assert story.device("d-1") is DeviceState.SUCCEEDED
    assert story.state.devices["d-1"].late
    assert story.state.state is RolloutState.FINISHED
    assert story.state.decisions == decisions
    assert decisions[-1].counts == {"SUCCEEDED": 1, "FAILED": 1}


def test_a_success_that_is_rolled_back_after_the_end_is_shown_as_failed() -> None:
    """The view goes on in both directions."""
    story = finished_with_a_silent_device()
    story.see("d-0", failed("rolled-back", at=9e3), HOUR)
    progress = story.state.devices["d-0"]
    assert (progress.state, progress.verdict) == (DeviceState.FAILED, DeviceState.SUCCEEDED)
    assert progress.reason.startswith("after the end, rolled-back: SelfTestError")


def test_what_an_ended_rollout_does_not_concern_changes_nothing() -> None:
    """New devices, devices that run something else, and old outcomes."""
    story = finished_with_a_silent_device()
    before = story.state
    story.see("d-9", runs(NEW))
    story.see("d-1", runs(OLD))
    story.see("d-1", waits())
    story.see("d-0", runs("c" * 64))
    assert story.state == before


def test_a_device_that_activated_before_the_abort_keeps_the_bundle() -> None:
    """Its report comes after the abort: it is shown as activated, and its assignment names what it runs."""
    story = Story(2, "100%")
    story.see("d-0", runs(NEW))
    assert story.take(Aborted()) == (Revert("d-1"),)
    effects = story.see("d-1", runs(NEW), 3)
    assert effects == (Keep("d-1"),)
    progress = story.state.devices["d-1"]
    assert (progress.state, progress.verdict) == (DeviceState.SUCCEEDED, DeviceState.ASSIGNED)
    assert story.state.state is RolloutState.ABORTED
    assert story.see("d-1", runs(NEW), 3) == (), "once is enough"


def test_every_decision_is_kept_with_its_time_and_counts() -> None:
    """Start, pause, resume and end follow each other; none is changed later."""
    story = Story(2, "1,100%")
    story.see(story.assigned[0], failed(), 10)
    story.take(Resumed(), 10)
    story.see(story.assigned[1], runs(NEW), 10)
    assert [(one.at, one.state.value, one.counts) for one in story.state.decisions] == [
        (1000.0, "RUNNING", {}),
        (1010.0, "PAUSED", {"FAILED": 1, "PENDING": 1}),
        (1020.0, "RUNNING", {"FAILED": 1, "PENDING": 1}),
        (1030.0, "FINISHED", {"FAILED": 1, "SUCCEEDED": 1}),
    ]


# --- thresholds and sizes


def test_a_success_threshold_of_zero_demands_no_success() -> None:
    """The next wave begins when each device of this one has an outcome, and the rollout ends without a success."""
    story = Story(4, "2,100%", success_threshold=0.0, error_threshold=1.0)
    story.see(story.assigned[0], failed())
    assert len(story.assigned) == 2, "one device has no outcome yet"
    story.see(story.assigned[1], failed())
    assert len(story.assigned) == 4
    for name in story.assigned[2:]:
        story.see(name, failed())
    assert story.state.state is RolloutState.FINISHED
    assert story.state.counts()["FAILED"] == 4


def test_waves_of_mixed_units_are_checked_against_the_size_of_the_fleet() -> None:
    """10 % of 10,000 devices are more than 500; of 1,000 they are fewer."""
    plan = RolloutPlan(parse_waves("10%,500,100%"))
    plan.check_size(1000)
    plan.check_size(3)
    with pytest.raises(SettingsError, match="of 10000 devices 10% are 1000 and 500 are 500"):
        plan.check_size(10_000)


# --- rows that cannot be read


def test_a_rollout_that_cannot_be_read_can_only_be_aborted() -> None:
    """A survey changes nothing; operators are told what to type."""
    rollout = Rollout(3, "m", "1.0.0", state=RolloutState.RUNNING, fault="its plan: expected float, got null")
    assert step(rollout, Surveyed({"d": runs()}), 1.0).state == rollout
    with pytest.raises(RefusedError, match="cannot be read") as caught:
        step(rollout, Resumed(), 1.0)
    assert caught.value.advice == "End it: edgekit rollout abort 3"
    ended = step(rollout, Aborted("enough"), 1.0).state
    assert ended.state is RolloutState.ABORTED
    assert "expected float, got null" in ended.reason
