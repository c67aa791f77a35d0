"""Which changes of a device's condition bring a report."""

from __future__ import annotations

import pytest

from device_agents.condition.rules import Condition, facts_of, steadied, worth_a_report

REPORTED = Condition(
    temperature_celsius=50, throttled="no", uptime_hours=3, clock_synchronised=True, disk_free_mib=1000
)


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"temperature_celsius": 54}, {}),
        ({"temperature_celsius": 55}, {"temperature_celsius": 55}),
        ({"temperature_celsius": 45}, {"temperature_celsius": 45}),
        ({"temperature_celsius": None}, {"temperature_celsius": None}),
        ({"disk_free_mib": 901}, {}),
        ({"disk_free_mib": 900}, {"disk_free_mib": 900}),
        ({"throttled": "under-voltage"}, {"throttled": "under-voltage"}),
        ({"clock_synchronised": False}, {"clock_synchronised": False}),
    ],
)
def test_small_changes_wait_and_large_ones_bring_a_report(changes: dict, reported: dict) -> None:
    """A value changes in reports by whole steps; five degrees, a tenth of the free space, any other at once."""
    values = {name: getattr(REPORTED, name) for name in Condition.__struct_fields__}
    steady = steadied(REPORTED, Condition(**(values | changes)))
    assert steady == Condition(**(values | reported))
    assert worth_a_report(REPORTED, steady) == bool(reported)


def test_the_uptime_alone_brings_no_report() -> None:
    """It rises by itself, so it goes with the next heartbeat."""
    values = {name: getattr(REPORTED, name) for name in Condition.__struct_fields__}
    steady = steadied(REPORTED, Condition(**(values | {"uptime_hours": 4})))
    assert steady.uptime_hours == 4
    assert not worth_a_report(REPORTED, steady)


def test_a_little_space_is_not_reported_again_and_again() -> None:
    """Near a full disk, a tenth is a few MiB; the step is at least 64 MiB."""
    full = Condition(disk_free_mib=40)
    assert steadied(full, Condition(disk_free_mib=60)) == full


def test_unknown_values_are_no_facts() -> None:
    """A filter for none finds such devices; false is a value."""
    assert facts_of(Condition(clock_synchronised=False)) == {"clock_synchronised": False}
