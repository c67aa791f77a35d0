"""A clock that was ahead once: the controller compares, warns, and signs anew; devices name the right machine."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import pytest

from edgekit.clock import SystemClock
from edgekit.controller.clocks import DeviceClocks
from edgekit.errors import ClockError
from edgekit.rollout.plan import Wave
from edgekit.rollout.values import DeviceState
from edgekit.trust.repository import Repository
from tests.simulators.control import ControlSide
from tests.simulators.publisher import DAY, Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path)
    registry.publish()
    return registry


def sign_ahead(registry: Registry, days: float) -> float:
    """Let a controller with a wrong clock sign the timestamp; returns the right time."""
    right = registry.clock.now
    registry.clock.now = right + days * DAY
    registry.repository.refresh_timestamp(force=True)
    registry.clock.now = right
    return right


def test_metadata_that_was_signed_in_the_future_is_signed_anew(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Every device refuses it until a controller whose clock is right has started; then all accept the new one."""
    now = sign_ahead(registry, 40)
    device = registry.device()
    with pytest.raises(ClockError, match="the metadata was signed at") as caught:
        device.client.refresh(now)
    assert "signing machine's" in caught.value.advice
    assert "edgekit registry renew" in caught.value.advice
    assert registry.repository.seconds_ahead() == pytest.approx(40 * DAY, abs=1)
    with caplog.at_level(logging.WARNING):
        assert registry.repository.refresh_timestamp()
    assert "signed 960.0 h later than this machine's clock shows" in caplog.text
    device.client.refresh(now)
    assert not registry.repository.refresh_timestamp(), "once is enough"


def test_clocks_that_differ_as_usual_cause_nothing(registry: Registry) -> None:
    """Five minutes between a workstation and a controller are no reason to sign."""
    sign_ahead(registry, 300 / DAY)
    assert not registry.repository.refresh_timestamp()


def test_a_controller_without_the_keys_says_who_must_sign(registry: Registry, tmp_path: Path, capfd) -> None:
    """It cannot sign anew, so it names the command for the machine that can."""
    from edgekit.cli.controller.group import _note_time

    sign_ahead(registry, 2)
    held = tmp_path / "controller"
    held.mkdir()
    shutil.copy2(registry.keys / "root.json", held / "root.json")
    _note_time(Repository(registry.store, held, clock=registry.clock))
    assert "signed 48.0 h later" in capfd.readouterr().err


def test_a_device_whose_own_clock_is_behind_is_told_so(registry: Registry) -> None:
    """A time that the device has seen before has certainly passed."""
    device, now = registry.device(), registry.clock.now
    with pytest.raises(ClockError, match="but the time is at least") as caught:
        device.client.refresh(now - 3 * DAY, {"time": int(now)})
    assert caught.value.advice.startswith("Set the clock")


class ShiftedClock(SystemClock):
    """A clock that a test sets ahead."""

    ahead = 0.0

    def wall(self) -> float:
        return SystemClock.wall() + self.ahead


async def test_a_rollout_goes_on_when_a_clock_that_was_ahead_is_set_right(tmp_path: Path) -> None:
    """Reports that come then are surveyed, though one of a lost device has a time that is still to come."""
    side = ControlSide(tmp_path)
    side.clock = ShiftedClock()
    side.clock.ahead = 30 * DAY
    async with side:
        digest = side.publish("digits", "1.0.0")
        lost, late = [await side.device(name, behaviour="silent") for name in ("pi-1", "pi-2")]
        side.start("digits", "1.0.0", waves=(Wave(share=1.0),))
        await side.until(lambda: lost.versions and late.versions)
        await side.until(lambda: side.state.work.look(side.clock.wall(), 0.0).change > time.time() + DAY)
        await lost.transport.stop()
        side.clock.ahead = 0.0
        late.behaviour = "succeed"
        late._deploy("digits", "1.0.0", digest)
        await late.report()
        await side.until(lambda: side.rollout().devices["pi-2"].state is DeviceState.SUCCEEDED)


def test_the_controller_compares_its_clock_with_the_devices() -> None:
    """The median counts, so that some devices with wrong clocks do not; devices without a clock are left out."""
    clocks = DeviceClocks()
    for index, ahead in enumerate((86_400.0, 86_410.0, 86_390.0, 3.0)):
        clocks.note(f"d-{index}", 2e9 - ahead, 2e9, 10.0)
    clocks.note("no-clock", 12.0, 2e9, 10.0)
    message = clocks.difference(20.0).message
    assert "24.0 h ahead of the clocks of 4 devices" in message
    assert clocks.difference(20_000.0).message == "", "reports of an hour ago say nothing"
    for index in range(5):
        clocks.note(f"d-{index}", 2e9 + 9000.0, 2e9, 20_000.0)
    assert "2.5 h behind" in clocks.difference(20_001.0).message
    clocks.clear()
    clocks.note("d-1", 1.9e9, 2e9, 20_000.0)
    assert clocks.difference(20_001.0).message == "", "one device proves nothing"


async def test_a_controller_signs_anew_as_soon_as_its_clock_is_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not wait for the next check, and warns that devices show another time."""

    class Clock:
        ahead = 30 * DAY

        def monotonic(self) -> float:
            return side_clock.monotonic()

        def wall(self) -> float:
            return side_clock.wall() + self.ahead

    signed: list[float] = []
    async with ControlSide(tmp_path) as side:
        side_clock, clock = side.clock, Clock()
        await side.stop_controller()
        side.clock = clock  # type: ignore[assignment]
        await side.start_controller()
        assert side.controller is not None
        side.controller._renew_timestamp = lambda: signed.append(clock.wall())
        for index in range(3):
            await side.device(f"pi-{index}")
        await side.until(lambda: side.controller.devices.clocks.difference(clock.monotonic()).devices == 3)
        assert "720.0 h ahead" in side.controller.devices.clocks.difference(clock.monotonic()).message
        checked = len(signed)
        with caplog.at_level(logging.WARNING):
            clock.ahead = 0.0
            await side.until(lambda: len(signed) > checked)
        assert "the clock of this machine was set" in caplog.text
