"""A rollout that waits for devices which wait on purpose says so in one sentence, with how to go on."""

from __future__ import annotations

import pytest

from edgekit.cli.rollout.live import live_lines
from edgekit.cli.rollout.text import status_lines
from edgekit.rollout.holding import holding_text
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.values import DeviceProgress, DeviceState, Rollout, RolloutState

WAITING, SUCCEEDED, ASSIGNED = DeviceState.WAITING, DeviceState.SUCCEEDED, DeviceState.ASSIGNED
PENDING, SKIPPED = DeviceState.PENDING, DeviceState.SKIPPED
NOW, HOUR = 100_000.0, 3600.0


def rollout(
    *states: DeviceState, wave: int = 0, waves: str = "50%,100%", reason: str = "quiet-hours", **plan: object
) -> Rollout:
    devices = {
        f"pi-{index}": DeviceProgress(
            state,
            "d",
            0.0 if state in (PENDING, SKIPPED) else NOW - HOUR,
            wave,
            reason if state is WAITING else "",
            waiting_since=NOW - HOUR if state is WAITING else 0.0,
        )
        for index, state in enumerate(states, 1)
    }
    made = RolloutPlan(parse_waves(waves), max_wait_seconds=3 * HOUR, **plan)  # type: ignore[arg-type]
    return Rollout(7, "m", "1.0.0", plan=made, state=RolloutState.RUNNING, wave=wave, devices=devices)


def test_one_device_is_named_with_its_reason_the_time_left_and_the_way_on() -> None:
    """In `status`, in `watch` on a terminal within its columns, and on the page."""
    held = rollout(WAITING, SUCCEEDED, PENDING, PENDING)
    text = holding_text(held, NOW)
    assert text == (
        "wave 2 waits for pi-1, which waits on purpose (quiet-hours); at most 2 h more. To go on without it: "
        "edgekit rollout cancel 7 pi-1"
    )
    assert text in status_lines(held, NOW)
    lines = live_lines(held, NOW, height=24, width=40)
    assert "wave 2 waits for pi-1, which waits on" in lines
    assert all(len(line) < 120 for line in lines)


def test_several_devices_are_counted_by_reason() -> None:
    """With the ways on that the plan and the reasons offer."""
    states = (*[WAITING] * 3, PENDING, PENDING, PENDING)
    assert "3 devices that wait on purpose (consent)" in (text := holding_text(rollout(*states, reason="consent"), NOW))
    assert text.endswith("without one of them: edgekit rollout cancel 7 DEVICE")
    assert holding_text(rollout(*states, consent=True), NOW).endswith("any more: edgekit rollout force 7")
    assert holding_text(rollout(*states, reason="paused"), NOW).endswith("edgekit fleet resume")


@pytest.mark.parametrize(
    ("states", "wave"),
    [
        ((ASSIGNED, WAITING, PENDING, PENDING), 0),  # the other one still works, and its success is not enough
        ((WAITING, PENDING, PENDING), 0),
        ((SUCCEEDED, WAITING, SKIPPED), 1),  # the last wave: the rollout does not end
    ],
)
def test_it_is_said_only_where_waiting_devices_hold_it_back(states: tuple[DeviceState, ...], wave: int) -> None:
    """Whatever the other devices of the wave do."""
    assert holding_text(rollout(*states, wave=wave), NOW)


def test_nothing_is_said_where_others_are_awaited_or_the_wave_has_enough() -> None:
    """The sentence is about devices that wait on purpose only."""
    assert not holding_text(rollout(SUCCEEDED, WAITING, PENDING, PENDING, success_threshold=0.5), NOW)
    assert not holding_text(rollout(ASSIGNED, ASSIGNED, PENDING, PENDING), NOW)
    assert not holding_text(rollout(WAITING, ASSIGNED, PENDING, wave=1), NOW), "the last wave goes on"
    held = rollout(WAITING, PENDING)
    for state in (RolloutState.PAUSED, RolloutState.FINISHED, RolloutState.ABORTED):
        other = Rollout(7, "m", "1.0.0", plan=held.plan, state=state, devices=held.devices)
        assert not holding_text(other, NOW)


def test_the_end_of_the_rollout_waits_too() -> None:
    """In the last wave, any device that waits keeps the rollout open."""
    assert holding_text(rollout(SUCCEEDED, WAITING, wave=1), NOW).startswith("the end of the rollout waits for pi-2")
