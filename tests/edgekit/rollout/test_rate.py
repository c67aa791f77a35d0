"""The rate of a rollout: so many devices an hour, more with each wave, whatever the clock does."""

import math

import pytest

from edgekit.errors import SettingsError
from edgekit.rollout.allowance import Allowance, wave_rate
from edgekit.rollout.plan import RolloutPlan, Wave
from edgekit.rollout.progress import seconds_left
from edgekit.rollout.values import DeviceState, Paused, Resumed, RolloutState, Surveyed
from tests.edgekit.rollout.test_machine import NEW, Story, idle, refused

ALL = (Wave(share=1.0),)


class Paced(Story):
    """A story that surveys whenever it is due; devices succeed as soon as they are assigned."""

    def run(self, seconds):
        """Times of the assignments in the next `seconds`, from now."""
        end, start, times = self.now + seconds, self.now, []
        while True:
            before = len(self.assigned)
            done = {name: idle(NEW) for name in self.named(DeviceState.ASSIGNED)}
            self.take(Surveyed(done))
            times += [self.now - start] * (len(self.assigned) - before)
            if len(self.assigned) > before:
                continue
            if self.wake_at is None or self.wake_at > end:
                self.now = end
                return times
            self.now = max(self.now, self.wake_at)


def test_devices_get_the_version_at_the_rate():
    """Sixty an hour: six at once, then one a minute, until all have it; it does not finish before."""
    story = Paced(20, waves=ALL, per_hour=60.0)
    assert len(story.assigned) == 6
    times = story.run(3600.0)
    assert times == pytest.approx([60.0 * minute for minute in range(1, 15)])
    assert story.state.state is RolloutState.FINISHED
    assert len(story.assigned) == len(set(story.assigned)) == 20


def test_the_rate_grows_with_each_wave():
    """Ten devices at 60 an hour, the next ninety at 600, and the rest at 6,000."""
    story = Paced(1000, waves=(Wave(count=10), Wave(count=100), Wave(share=1.0)), per_hour=60.0, ramp=10.0)
    times = [0.0] * len(story.assigned) + story.run(7200.0)
    assert len(times) == 1000
    assert times[9] == pytest.approx(4 * 60.0)
    assert 60 * 6 <= times[99] - times[9] <= 90 * 6 + 10
    assert 900 * 0.6 - 360 <= times[999] - times[99] <= 900 * 0.6 + 10
    assert story.state.state is RolloutState.FINISHED


def test_in_no_hour_more_than_the_rate_and_its_burst():
    """Also over a pause, which saves up no more than six minutes' worth."""
    story = Paced(400, waves=ALL, per_hour=100.0)
    times = [0.0] * len(story.assigned) + story.run(3000.0)
    story.take(Paused())
    story.now += 10_000.0
    story.take(Resumed())
    resumed = len(story.assigned) - len(times)
    assert resumed == 10
    assert len(times) <= 100 + 10
    assert len(story.run(3600.0)) <= 100


def test_a_clock_that_was_ahead_stops_no_rate():
    """Set right after a day ahead, the next device follows within a minute or so."""
    story = Paced(20, waves=ALL, per_hour=60.0)
    story.now += 86_400.0
    story.run(60.0)
    before = len(story.assigned)
    story.now -= 86_460.0
    assert len(story.run(180.0)) >= 2
    assert len(story.assigned) <= before + 4


def test_a_clock_that_was_ahead_neither_stretches_a_soak_nor_a_deadline():
    """A month ahead, one device succeeded and one was assigned; set right, both have their usual times from then on."""
    story = Story(2, waves=(Wave(count=1), Wave(share=1.0)), soak_seconds=600.0, device_deadline_seconds=600.0)
    (first,) = story.assigned
    story.now += 30 * 86_400.0
    story.see(first, idle(NEW))
    story.now -= 30 * 86_400.0
    story.take(Surveyed())
    story.now += 601.0
    story.take(Surveyed())
    assert len(story.assigned) == 2
    story.now += 30 * 86_400.0
    story.take(Paused())
    story.take(Resumed())  # the time of the second device begins, a month ahead
    story.now -= 30 * 86_400.0
    story.take(Surveyed())
    story.now += 601.0
    story.take(Surveyed())
    assert story.named(DeviceState.FAILED) == {story.assigned[1]}


def test_failures_stop_a_rollout_that_waits_for_its_rate():
    """The error threshold holds for the devices that have the assignment so far."""
    story = Paced(20, waves=ALL, per_hour=60.0)
    for name in list(story.assigned)[:2]:
        story.see(name, refused())
    assert story.state.state is RolloutState.PAUSED
    assert len(story.assigned) == 6


def test_the_time_left_knows_the_rate():
    """A hundred devices at sixty an hour need more than the time that a device takes."""
    story = Paced(100, waves=ALL, per_hour=60.0)
    story.now += 5.0
    story.take(Surveyed({name: idle(NEW) for name in story.assigned}))
    assert seconds_left(story.state, story.now) == pytest.approx(94 * 60.0)


def test_without_a_rate_all_devices_of_a_wave_get_it_at_once():
    """As rollouts of earlier releases, whose plans have no rate."""
    story = Paced(50, waves=ALL)
    assert len(story.assigned) == 50
    assert story.state.allowance is None


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        ({"per_hour": math.nan}, "per_hour is nan, expected 0.01 to 1000000"),
        ({"per_hour": math.inf}, "per_hour is inf"),
        ({"per_hour": -1.0}, "per_hour is -1"),
        ({"per_hour": 1e-300}, "per_hour is 1e-300"),
        ({"per_hour": 10.0, "ramp": 0.5}, "ramp is 0.5, expected 1 to 100"),
        ({"per_hour": 10.0, "ramp": math.nan}, "ramp is nan"),
        ({"ramp": 2.0}, "a ramp needs per_hour"),
    ],
)
def test_odd_rates_are_refused(plan, fault):
    """The message names the number and what is expected."""
    with pytest.raises(SettingsError, match=fault):
        RolloutPlan(**plan)


def test_a_late_wave_has_a_finite_rate():
    """However many waves there are."""
    assert wave_rate(1e6, 100.0, 10_000) == 1e9
    assert Allowance.start(wave_rate(1e6, 100.0, 10_000)).at(5.0).count(10) == 10
