"""The device follows the newest assignment, when the fleet's hints allow it; what is no longer wanted ends at once."""

import math

import pytest

from device_agents.control.assignment import Turn
from device_agents.deployment import UpdateState
from edgekit.mqtt import messages, topics
from tests.simulators.device import FLEET


def hint(desk, **fields):
    desk.broker.publish(topics.fleet_hints(FLEET), messages.encode(messages.FleetHints(**fields)), qos=1, retain=True)


async def accepted(device, version):
    await device.until(lambda: device.agent._journal.record.assignment == version)


async def test_a_paused_fleet_still_ends_a_transfer_that_is_no_longer_wanted(desk, device):
    """An abort reaches a device in its download, though the fleet is paused and begins nothing new."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    entry = desk.publish("2.0.0")
    desk.tamper = lambda digest, index, data: data if digest == entry.sha256 or index < 2 else None
    desk.assign(entry)
    await device.until(lambda: device.state.name is UpdateState.DOWNLOADING)
    hint(desk, paused=True)
    desk.assign(desk.publish("3.0.0"))
    await accepted(device, 3)
    await device.settled("1.0.0")
    assert device.disk.list("incoming") == []
    await device.until(lambda: device.reported().models["digits"].waiting is not None)
    assert device.reported().models["digits"].waiting.reason == "paused"
    desk.tamper = lambda digest, index, data: data
    hint(desk)
    await device.settled("3.0.0")
    assert device.inference.history == ["1.0.0", "3.0.0"]


async def test_an_assignment_that_waits_for_its_turn_gives_way_to_a_newer_one(desk, device):
    """In a spread of a day, the newest assignment counts, and new hints are obeyed at once."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    hint(desk, spread_seconds=messages.MAX_SPREAD_SECONDS)
    await device.until(lambda: device.agent._link.hints.spread_seconds)
    desk.assign(desk.publish("2.0.0"))
    await accepted(device, 2)
    desk.assign(desk.publish("3.0.0"))
    await accepted(device, 3)
    assert device.state.deployment is None
    hint(desk)
    await device.settled("3.0.0")
    assert device.inference.history == ["1.0.0", "3.0.0"]


@pytest.mark.parametrize("spread", [math.inf, math.nan, -1.0, messages.MAX_SPREAD_SECONDS * 1.01])
async def test_a_spread_out_of_range_delays_nothing(desk, device, spread):
    """Hints are not signed: one that nobody can obey is dropped and counted."""
    hint(desk, spread_seconds=spread)
    await device.until(lambda: device.agent._counters()["agent.dropped_messages"] == 1.0)
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")


async def test_the_time_to_reconnect_is_that_of_the_newest_hints(desk, device):
    """It is the transport's, stays after a loss of the broker, and hints without one take it back."""
    assert device.transport.reconnect_seconds == 0.0
    hint(desk, reconnect_seconds=messages.MAX_RECONNECT_SECONDS)
    await device.until(lambda: device.transport.reconnect_seconds == messages.MAX_RECONNECT_SECONDS)
    desk.broker.stop()
    assert device.transport.reconnect_seconds == messages.MAX_RECONNECT_SECONDS
    desk.broker.start()
    hint(desk)
    await device.until(lambda: device.transport.reconnect_seconds == 0.0)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0, messages.MAX_RECONNECT_SECONDS * 1.01])
async def test_a_time_to_reconnect_out_of_range_is_dropped_with_its_hints(desk, device, seconds):
    """No forged message keeps a device from its broker for longer; the good hints before it stay."""
    hint(desk, reconnect_seconds=4.0)
    await device.until(lambda: device.transport.reconnect_seconds == 4.0)
    hint(desk, reconnect_seconds=seconds, paused=True)
    await device.until(lambda: device.agent._counters()["agent.dropped_messages"] == 1.0)
    assert (device.transport.reconnect_seconds, device.agent._link.hints.paused) == (4.0, False)


def test_a_turn_keeps_its_place():
    """The spread begins when the fleet is not paused. A device's share of it stays the same, whatever arrives."""
    turn = Turn(luck=0.5).at(10.0, paused=True)
    assert turn.since is None
    turn = turn.at(20.0, paused=False).at(90.0, paused=False)
    assert turn.seconds_left(90.0, 200.0) == 30.0
    assert turn.seconds_left(90.0, 60.0) == 0.0
    assert turn.at(95.0, paused=True).at(100.0, paused=False).seconds_left(100.0, 200.0) == 100.0
