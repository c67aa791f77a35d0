"""A model that an operator takes off a device: on the real agent, with the real controller."""

import pytest

from device_agents.deployment import removed
from device_agents.storage.journal import Journal
from edgekit.errors import NotFoundError, RefusedError
from edgekit.rollout.values import Aborted, Cancelled, RolloutState
from edgekit.state.rollout.assignments import assign
from tests.edgekit.controller.test_conditions import waits
from tests.edgekit.controller.test_with_an_agent import fleet_of_one
from tests.simulators.control import TARGET
from tests.simulators.device import DEVICE


async def installed(side, version="1.0.0"):
    """Publish a version and roll it out."""
    side.publish("digits", version)
    side.start("digits", version)
    await side.until(lambda: side.rollout().state is RolloutState.FINISHED)


async def restarted(device):
    """Start the agent in a new process, which has loaded no model yet."""
    device.inference.live.clear()
    await device.start()


def off(side):
    """Take the model off the device."""
    return side.state.uninstall.run("digits", [DEVICE], side.clock.wall())


def is_gone(side, device):
    """Whether the device reports that it has no model, after the uninstall."""
    (view,) = side.state.devices.views(side.clock.wall(), 90.0)
    return not view.models and not device.disk.exists("models/digits")


async def test_the_model_and_its_files_leave_the_device(tmp_path):
    """It no longer answers, both slots are gone, the device says so, and a restart does not bring it back."""
    async with fleet_of_one(tmp_path) as (side, device):
        await installed(side)
        await installed(side, "1.1.0")
        assert {device.disk.exists(f"models/digits/{slot}") for slot in "ab"} == {True}
        assert [one.changes for one in off(side)] == [True]
        await side.until(lambda: is_gone(side, device))
        assert device.inference.live == {}
        await side.until(lambda: side.state.devices.events(DEVICE)[0].kind == "uninstalled")
        entry = side.state.audit.entries(what="device.uninstall")[0]
        assert (entry.subject, entry.before["running"]) == (DEVICE, "1.1.0")
        await device.stop()
        await restarted(device)
        assert device.inference.live == {}
        assert "digits" not in device.agent.states


async def test_a_model_that_is_only_missing_stays(tmp_path):
    """An assignment without the model and without an order to remove it deletes nothing."""
    async with fleet_of_one(tmp_path) as (side, device):
        await installed(side)
        side.publish("other", "1.0.0")
        with side.state.assignments._writing() as connection:
            assign(connection, side.state.fleet, DEVICE, "digits", None)
        side.start("other", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert device.inference.live == {"digits": "1.0.0", "other": "1.0.0"}
        assert device.disk.exists("models/digits")


async def test_after_it_an_older_version_is_refused_and_the_same_is_installed(tmp_path):
    """The floor of releases outlives the model, so that nobody goes back by way of an uninstall."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "0.9.0")
        await installed(side)
        off(side)
        await side.until(lambda: is_gone(side, device))
        side.start("digits", "0.9.0")
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        assert "older" in side.rollout().devices[DEVICE].reason
        side.state.rollouts.apply(side.rollout().id, Aborted(), side.clock.wall())
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert device.inference.live == {"digits": "1.0.0"}
        assert side.state.assignments.get(DEVICE).uninstall == ()


async def test_it_ends_an_update_on_its_way(tmp_path):
    """An update that waits for its user is dropped together with the model."""
    async with fleet_of_one(tmp_path) as (side, device):
        await installed(side)
        side.publish("digits", "1.1.0")
        side.start("digits", "1.1.0", consent=True)
        await side.until(lambda: waits(side, "consent"))
        with pytest.raises(RefusedError, match=r"rollout 2 of digits .* is RUNNING and includes"):
            off(side)
        side.state.rollouts.apply(2, Cancelled(DEVICE), side.clock.wall())
        off(side)
        await side.until(lambda: is_gone(side, device))


async def test_a_standing_assignment_does_not_bring_it_back(tmp_path):
    """It gives the model to devices that have nothing of it, but not where an operator removed it."""
    async with fleet_of_one(tmp_path) as (side, device):
        await installed(side)
        release = side.reader().resolve("digits", TARGET)
        side.state.standing.add("digits", {TARGET: release.entry}, now=side.clock.wall(), version="1.0.0")
        off(side)
        await side.until(lambda: is_gone(side, device))
        assert side.state.standing.apply(side.clock.wall()) == {}


async def test_a_cut_between_the_journal_and_the_files_is_repaired(tmp_path):
    """The model does not answer after the cut, and what is left of it is removed."""
    async with fleet_of_one(tmp_path) as (side, device):
        await installed(side)
        await device.stop()
        journal = Journal(device.disk)
        journal.save("digits", removed(journal.models()["digits"]))
        assert device.disk.exists("models/digits")
        off(side)
        await restarted(device)
        assert device.inference.live == {}
        await side.until(lambda: is_gone(side, device))


async def test_a_device_that_was_off_removes_it_at_its_return(tmp_path):
    """It answers from its disk at first, and obeys the retained assignment as soon as it is connected."""
    async with fleet_of_one(tmp_path) as (side, device):
        await installed(side)
        await device.stop()
        off(side)
        await device.start()
        await side.until(lambda: is_gone(side, device))
        assert device.agent.states == {}


async def test_a_model_that_no_device_has_is_an_error(tmp_path):
    """Nothing is changed, and the plan says the same."""
    async with fleet_of_one(tmp_path) as (side, _device):
        for attempt in (lambda: off(side), lambda: side.state.uninstall.plan("digits", [DEVICE])):
            with pytest.raises(NotFoundError, match="none of the selected devices has model 'digits'"):
                attempt()
        assert side.state.assignments.get(DEVICE) is None
