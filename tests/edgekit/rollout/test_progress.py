"""How far a rollout is: what each wave has reached, and the time left."""

from __future__ import annotations

import pytest

from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.progress import counts_text, seconds_left, wave_progress
from edgekit.rollout.values import DeviceProgress, DeviceState, Rollout, RolloutState

PLAN = RolloutPlan(parse_waves("10%,50%,100%"))


def rollout(wave: int, *devices: DeviceProgress, state: RolloutState = RolloutState.RUNNING) -> Rollout:
    named = {f"d{index}": one for index, one in enumerate(devices)}
    return Rollout(1, "m", "1.0.0", plan=PLAN, state=state, wave=wave, devices=named)


def member(wave: int, begun: float, at: float = 0.0) -> DeviceProgress:
    state = DeviceState.SUCCEEDED if at else DeviceState.ASSIGNED
    return DeviceProgress(state, "d", assigned_at=begun, wave=wave, at=at or begun)


@pytest.mark.parametrize(
    ("counts", "assigned"),
    [
        ({"PENDING": 20}, [0, 0, 0]),
        ({"SUCCEEDED": 1, "TOLD": 1, "PENDING": 18, "SKIPPED": 5}, [2, 0, 0]),
        ({"SUCCEEDED": 2, "TOLD": 5, "PENDING": 13}, [2, 5, 0]),
        ({"SUCCEEDED": 14, "FAILED": 2, "WAITING": 3, "NOT_REACHED": 1}, [2, 8, 9]),
    ],
)
def test_devices_fill_the_waves_one_after_the_other(counts: dict[str, int], assigned: list[int]) -> None:
    """Skipped devices belong to none; a device that cannot be reached gives its place to another one."""
    found = wave_progress(PLAN, 1, counts)
    assert [one.size for one in found] == [2, 8, 10]
    assert [one.assigned for one in found] == assigned
    assert [one.started for one in found] == [True, True, False]


def test_a_fleet_of_two_has_waves_without_devices() -> None:
    """Their size is 0, and never below."""
    assert [one.size for one in wave_progress(PLAN, 0, {"PENDING": 2})] == [1, 0, 1]
    assert [one.size for one in wave_progress(PLAN, 0, {})] == [0, 0, 0]


def test_later_waves_take_as_long_as_the_ones_before() -> None:
    """The first took 60 s; 20 s of the second have passed, so 40 s and a third one of 60 s are left."""
    found = rollout(1, member(0, 1000.0, 1050.0), member(1, 1060.0), member(1, 1060.0))
    assert seconds_left(found, 1080.0) == pytest.approx(100.0)
    assert seconds_left(found, 2000.0) == pytest.approx(60.0)


def test_the_first_wave_is_judged_by_its_own_devices() -> None:
    """By the 90 % fastest, once three have succeeded."""
    early = [member(0, 1000.0, 1010.0), member(0, 1000.0, 1012.0), member(0, 1000.0)]
    assert seconds_left(rollout(0, *early), 1015.0) is None
    known = [*early, member(0, 1000.0, 1014.0)]
    assert seconds_left(rollout(0, *known), 1015.0) == pytest.approx(28.0)


def test_nothing_is_said_where_nothing_is_known() -> None:
    """Before the first device has the assignment, and while a rollout does not run."""
    assert seconds_left(rollout(0), 5.0) is None
    assert seconds_left(rollout(0, member(0, 1.0, 2.0), state=RolloutState.PAUSED), 5.0) is None


def test_counts_as_text() -> None:
    """In the order of a device's life, with the late ones."""
    assert counts_text({"SUCCEEDED": 1200, "TOLD": 2, "FAILED": 0}, 3) == "2 assigned, 1,200 succeeded (3 late)"
    assert counts_text({}) == "no devices yet"
