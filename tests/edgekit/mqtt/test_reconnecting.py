"""The time in which devices come back fits their number."""

import numpy as np
import pytest

from edgekit.mqtt.messages import MAX_RECONNECT_SECONDS
from edgekit.mqtt.reconnecting import LONGEST_SECONDS, SHORTEST_SECONDS, reconnect_seconds

BACK, STEADY, WINDOW = 20, 0.179, 10.0  # messages of a device that comes back; its messages a second; seconds


@pytest.mark.parametrize(
    ("devices", "seconds"),
    [(0, 2.0), (1, 2.0), (33, 2.0), (34, 4.0), (100, 8.0), (266, 16.0), (533, 32.0), (534, 60.0), (2**53, 60.0)],
)
def test_a_power_of_two_between_two_seconds_and_a_minute(devices, seconds):
    """Three devices do not wait for a thousand."""
    assert reconnect_seconds(devices) == seconds
    assert SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS <= MAX_RECONNECT_SECONDS


def test_a_growing_fleet_changes_the_hint_five_times():
    """It never gets shorter for more devices."""
    found = [reconnect_seconds(devices) for devices in range(10_000)]
    assert found == sorted(found)
    assert len(set(found)) == 6


@pytest.mark.parametrize("devices", [3, 33, 133, 266, 533, 1000, 3000])
def test_messages_after_a_restart_are_at_most_three_times_those_of_a_thousand_devices(devices):
    """Seeded, in any ten seconds; with every device at once a thousand would send eleven times as many."""
    random = np.random.default_rng(devices)
    steady = STEADY * max(devices, 1000)

    def most(seconds):
        back = np.sort(random.uniform(0.0, seconds, devices))
        online = np.arange(devices)  # those that came back before; the next report is 24 s away at least
        within = np.searchsorted(back, back + WINDOW) - online
        return float((within * BACK / WINDOW + online * STEADY).max()) / steady

    assert most(reconnect_seconds(devices)) <= 3.0
    assert devices < 1000 or most(0.5) > 10.0
