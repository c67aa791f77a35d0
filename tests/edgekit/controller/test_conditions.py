"""Conditions of a rollout on real agents: the user's agreement, and the maintenance window."""

import time

import pytest

from device_agents.storage.consents import Consents
from edgekit.errors import NotFoundError
from edgekit.rollout.values import Aborted, Forced, Paused, RolloutState
from tests.edgekit.controller.test_with_an_agent import fleet_of_one
from tests.simulators.device import DEVICE


def waits(side, reason):
    """Whether the device is WAITING for this reason."""
    progress = side.rollout().devices.get(DEVICE)
    return progress is not None and (progress.state.name, progress.reason) == ("WAITING", reason)


def window(minutes):
    """A window of an hour that begins so many minutes from now, in local time."""
    now = time.localtime()
    first = (now.tm_hour * 60 + now.tm_min + minutes) % 1440
    last = (first + 60) % 1440
    return f"{first // 60:02}:{first % 60:02}-{last // 60:02}:{last % 60:02}"


async def test_a_device_waits_for_its_user(tmp_path):
    """Declined it waits on, agreed it updates at once; the agreement holds for that bundle only."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0", consent=True)
        await side.until(lambda: waits(side, "consent"))
        assert await device.agent.consent("digits", False) == "1.0.0"
        await side.until(lambda: waits(side, "declined"))
        assert device.inference.live == {}
        await device.agent.consent("digits", True)
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        with pytest.raises(NotFoundError, match="no update of model 'digits' asks"):
            await device.agent.consent("digits", True)
        side.publish("digits", "1.1.0")
        side.start("digits", "1.1.0", consent=True)
        await side.until(lambda: waits(side, "consent"))
        assert device.inference.live == {"digits": "1.0.0"}


async def test_an_answer_on_the_command_line_is_noticed(tmp_path):
    """The command writes a file, which the agent reads while an update waits."""
    async with fleet_of_one(tmp_path) as (side, device):
        digest = side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0", consent=True)
        await side.until(lambda: waits(side, "consent"))
        Consents(device.disk).put("digits", digest, True)
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)


async def test_a_rollout_without_consent_asks_nobody(tmp_path):
    """It takes the place of one that waits for an agreement."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0", consent=True)
        await side.until(lambda: waits(side, "consent"))
        side.state.rollouts.apply(1, Aborted(), side.clock.wall())
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert device.inference.live == {"digits": "1.0.0"}


async def test_a_forced_rollout_asks_nobody_any_more(tmp_path):
    """A user's no is overridden, also while the rollout is paused; the change is in the audit log."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0", consent=True)
        await side.until(lambda: waits(side, "consent"))
        await device.agent.consent("digits", False)
        await side.until(lambda: waits(side, "declined"))
        side.state.rollouts.apply(1, Paused(), side.clock.wall())
        side.state.rollouts.apply(1, Forced(), side.clock.wall())
        await side.until(lambda: device.inference.live == {"digits": "1.0.0"})
        assert [entry.subject for entry in side.state.audit.entries(what="rollout.force")] == ["1"]
        assert not side.state.assignments.get(DEVICE).entries["digits"].consent


async def test_a_forced_rollout_still_waits_for_its_window(tmp_path):
    """The user is not asked, but the maintenance window holds."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0", consent=True, window=window(120))
        await side.until(lambda: waits(side, "window"))
        before = side.state.assignments.get(DEVICE).version
        side.state.rollouts.apply(1, Forced(), side.clock.wall())
        await side.until(lambda: device.reported().assignment > before)
        await side.until(lambda: waits(side, "window") and not device.state.deployment.consent)
        assert device.inference.live == {}


async def test_a_device_waits_for_its_window(tmp_path):
    """Outside of it nothing is fetched; inside of it the rollout finishes."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0", window=window(120))
        await side.until(lambda: waits(side, "window"))
        assert device.inference.live == {}
        side.state.rollouts.apply(1, Aborted(), side.clock.wall())
        side.start("digits", "1.0.0", window=window(-30))
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
