"""Steering through a real controller: a paused fleet, another attempt, and one device that leaves."""

from edgekit.mqtt import topics
from edgekit.mqtt.reconnecting import reconnect_seconds
from edgekit.rollout.cohort import Device
from edgekit.rollout.plan import Wave
from edgekit.rollout.values import Cancelled, Retried, RolloutState
from tests.edgekit.controller.test_with_an_agent import fleet_of_one
from tests.simulators.control import FLEET, TARGET, ControlSide
from tests.simulators.device import DEVICE

ALL = (Wave(share=1.0),)


async def test_a_paused_fleet_begins_nothing_until_it_is_resumed(tmp_path):
    """A real agent reports that it waits, the rollout counts it so, and a restart of the controller changes nothing."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.state.pause.set(True, side.clock.wall(), reason="broker moves")
        await side.until(lambda: device.agent._link.hints.paused)
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().counts()["WAITING"] == 1)
        assert side.rollout().devices[DEVICE].reason == "paused"
        await side.stop_controller()
        await side.start_controller()
        side.state.pause.set(False, side.clock.wall())
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert [entry.what for entry in side.state.audit.entries(what="fleet")] == ["fleet.resume", "fleet.pause"]


async def test_devices_learn_how_long_to_take_to_come_back(tmp_path):
    """From a real controller to a real agent; enrolling changes it, the pause keeps it, and nothing is sent twice."""
    async with fleet_of_one(tmp_path) as (side, device):
        await side.until(lambda: device.transport.reconnect_seconds == reconnect_seconds(1))
        for number in range(99):
            side.state.devices.enroll(Device(f"more-{number}", TARGET, "", enrolled=side.clock.wall()))
        await side.until(lambda: device.transport.reconnect_seconds == reconnect_seconds(100))
        side.state.pause.set(True, side.clock.wall())
        await side.until(lambda: device.agent._link.hints.paused)
        assert device.transport.reconnect_seconds == reconnect_seconds(100) > reconnect_seconds(1)
        sent = [one for one in side.broker.published if one.topic == topics.fleet_hints(FLEET)]
        assert len(sent) <= 6  # in hundreds of rounds of the controller


async def test_a_second_attempt_reaches_the_device_that_failed(tmp_path):
    """A real agent tries the same bundle again, because the assignment is a new one."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        device.refused.add("1.0.0")
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        device.refused.clear()
        side.state.rollouts.apply(1, Retried(), side.clock.wall())
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert device.inference.live == {"digits": "1.0.0"}
        (entry,) = side.state.audit.entries(what="rollout.retry")
        assert entry.after["assigned"] == [DEVICE]


async def test_a_device_that_leaves_gets_back_what_it_had(tmp_path):
    """Its assignment names the earlier bundle again, also after another attempt; the others finish."""
    async with ControlSide(tmp_path) as side:
        for version in ("1.0.0", "1.1.0"):
            side.publish("digits", version)
        for name in ("pi-1", "pi-2"):
            await side.device(name)
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        side.devices["pi-2"].behaviour = "refuse"
        side.start("digits", "1.1.0", waves=ALL, error_threshold=0.9, success_threshold=1.0)
        await side.until(lambda: side.rollout().counts()["FAILED"] == 1)
        side.state.rollouts.apply(2, Retried(), side.clock.wall())
        await side.until(lambda: side.rollout().state is not RolloutState.RUNNING)
        side.state.rollouts.apply(2, Cancelled("pi-2"), side.clock.wall())
        (entry,) = side.state.assignments.get("pi-2").entries.values()
        assert entry.version == "1.0.0"
        (entry,) = side.state.assignments.get("pi-1").entries.values()
        assert entry.version == "1.1.0"
