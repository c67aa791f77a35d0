"""The daily budgets on a device that runs for days: midnights, restarts, losses of power, and clocks that jump."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agents.inference.cloud.budget_rules import DAY_SECONDS, EARLIEST_CLOCK, Budget, Verdict
from device_agents.inference.cloud.budgets import Budgets
from edgekit.protocols import Disk
from edgekit.storage.disk import FolderDisk
from tests.simulators.disk import MemoryDisk

MODEL, CALLS, SIZE = "digits", 100, 50
HOUR, BOOT_CLOCK = 3600.0, 30.0  # a clock without a battery begins near 1970
RIGHT = datetime.datetime(2026, 12, 30, 21, tzinfo=datetime.timezone.utc).timestamp()


class Device:
    """Time passes, the clock is set, power goes; a call is tried at every step, and as often as the budget allows."""

    def __init__(self, disk: Disk) -> None:
        self._disk, self._up, self._offset = disk, 0.0, RIGHT
        self.lived = self.set_forward = 0.0
        self.sent = self.kills = 0
        self._readings = {True: (RIGHT, 0.0)}  # the last wall time of a clock that is set, or not, and when
        self._start()

    def _start(self) -> None:
        self._budgets = Budgets(Budget(CALLS), lambda _: Budget(), self, self._disk)

    def wall(self) -> float:
        return self._up + self._offset

    def monotonic(self) -> float:
        return self._up

    def run(self, seconds: float, *, greedy: bool = True) -> None:
        """Let time pass, then send: all that the budget allows, or one."""
        self._up += seconds
        self.lived += seconds
        asyncio.run(self._send(greedy))

    async def _send(self, greedy: bool) -> None:
        while self._budgets.judge(MODEL, SIZE, None) is Verdict.ALLOWED:
            self._budgets.spend(MODEL, SIZE)
            await self._budgets.store(MODEL)
            self.sent += 1
            if not greedy:
                break
        await self._budgets.store(MODEL)  # as after a call that is held back

    def set_clock(self, wall: float) -> None:
        """Set the clock, and count how far that is ahead of the last reading of its kind (set, or not set yet)."""
        self._offset = wall - self._up
        is_set = wall >= EARLIEST_CLOCK
        reading, lived = self._readings.get(is_set, (wall, self.lived))
        self.set_forward += max(wall - (reading + self.lived - lived), 0.0)
        self._readings[is_set] = wall, self.lived

    def restart(self, *, in_order: bool, battery: bool) -> None:
        """Stop, in order or by a loss of power, and start; without a battery the clock is not set then."""
        if in_order:
            asyncio.run(self._budgets.close())
        self.kills += not in_order
        wall, self._up = self.wall(), 0.0
        self._offset = wall
        if not battery:
            self.set_clock(BOOT_CLOCK)
        self._start()

    @property
    def most(self) -> float:
        """The most calls: a budget for the first day, and one for each day that passed by the clock."""
        return CALLS * (1 + (self.lived + self.set_forward) // DAY_SECONDS)


def test_a_budget_is_one_day_long_whatever_midnight_is(tmp_path: Path) -> None:
    """The day begins with its first call: midnight and the turn of the year in between give no second budget."""
    device = Device(FolderDisk(tmp_path))  # 21:00 on the last day but one of a year
    device.run(0)
    for _ in range(47):
        device.run(HOUR / 2)
    assert device.sent == CALLS  # 20:30 of the next day
    device.run(HOUR / 2)
    assert device.sent == 2 * CALLS
    device.run(24 * HOUR)
    assert device.sent == 3 * CALLS


@pytest.mark.parametrize("in_order", [True, False])
def test_restarts_neither_give_nor_take_a_budget(tmp_path: Path, in_order: bool) -> None:
    """Each loss of power costs a hundredth of the budget at most."""
    device = Device(FolderDisk(tmp_path))
    for _ in range(10):
        device.run(HOUR, greedy=False)
        device.restart(in_order=in_order, battery=True)
    device.run(HOUR)
    assert CALLS - device.kills * CALLS / 100 <= device.sent <= CALLS


def test_a_clock_that_is_set_after_each_start_gives_one_budget_a_day(tmp_path: Path) -> None:
    """A device without a battery that starts five times a day, and gets the time an hour later each time."""
    device = Device(FolderDisk(tmp_path))
    for hour in range(0, 72, 5):
        device.restart(in_order=False, battery=False)
        device.run(HOUR)
        device.set_clock(RIGHT + hour * HOUR)
        device.run(4 * HOUR)
    assert 2 * CALLS <= device.sent <= 4 * CALLS


@pytest.mark.parametrize("step", [RIGHT, RIGHT - 40 * DAY_SECONDS])
def test_a_spent_budget_comes_back_a_day_after_the_clock_was_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: float
) -> None:
    """The time came, or was set back, when all was spent: the day began anew at every look, and never ended."""
    device = Device(FolderDisk(tmp_path))
    if step == RIGHT:
        device.restart(in_order=True, battery=False)
    device.run(HOUR)
    device.set_clock(step)
    for _ in range(47):
        device.run(HOUR / 2)
    assert device.sent == CALLS
    device.run(HOUR)
    assert device.sent == 2 * CALLS
    assert len(caplog.messages) == 3  # for each day, and for the one that was set: not with every call


STEPS = st.one_of(
    st.tuples(st.just("run"), st.floats(0, 2 * DAY_SECONDS)),
    st.tuples(st.just("set"), st.floats(-3 * DAY_SECONDS, 3 * DAY_SECONDS)),
    st.tuples(st.just("right"), st.just(0.0)),
    st.tuples(st.sampled_from(["stop", "kill", "stop without battery", "kill without battery"]), st.just(0.0)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=14), st.booleans())
def test_no_clock_and_no_restart_gives_more_than_the_days_that_passed_by_it(
    steps: list[tuple[str, float]], greedy: bool
) -> None:
    """Time that passed and clocks that were set forward end days; nothing else gives a further budget."""
    device = Device(MemoryDisk())
    for kind, value in steps:
        if kind == "run":
            device.run(value, greedy=greedy)
        elif kind == "set":
            device.set_clock(max(device.wall() + value, 0.0))
        elif kind == "right":
            device.set_clock(RIGHT + device.lived)
        else:
            device.restart(in_order="stop" in kind, battery="without" not in kind)
        device.run(0.0, greedy=greedy)
        assert device.sent <= device.most
