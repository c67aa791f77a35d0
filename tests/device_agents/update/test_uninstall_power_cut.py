"""The power may go at any moment while a model is taken off a device."""

import shutil

from edgekit.clock import SystemClock
from edgekit.mqtt import topics
from edgekit.trust.assignment import Assignment, sign_assignment
from tests.device_agents.update.test_crash_points import Bench
from tests.simulators.crash import Loss
from tests.simulators.device import DEVICE, FLEET

EVERY = 7  # calls of the file system; all of them take half a minute


def order_removal(desk):
    """Sign the order that takes the model off the device."""
    desk._version += 1
    expires = SystemClock().wall() + 3600
    assignment = Assignment(DEVICE, FLEET, desk._version, expires, {}, ("digits",))
    payload = sign_assignment(assignment, desk.director)
    desk.broker.publish(topics.device(FLEET, DEVICE, "desired"), payload, qos=1, retain=True)


def removed(device):
    served = "digits" in device.inference.models()
    return not device.agent.states and not device.disk.exists("models/digits") and not served


async def until_reported(device):
    await device.until(lambda: removed(device) and "digits" not in device.reported().models)


async def calls_of_a_removal(bench):
    """Numbers of the calls before the order, and until the agent has stopped after it."""
    device = bench.copy("counted")
    device.cut_power_at(0, Loss.KEPT)
    await device.start()
    before = len(device.calls.kinds)
    order_removal(bench.desk)
    await until_reported(device)
    await device.stop()
    return before, len(device.calls.kinds)


async def test_a_removal_that_loses_power_is_finished_after_the_restart(tmp_path):
    """Cut at calls of the file system in turn: the model is gone afterwards, and the device reports none."""
    bench = Bench(tmp_path)
    await bench.prepare()
    before, after = await calls_of_a_removal(bench)
    assert after - before > 20
    for call in range(before + 1, after + 1, EVERY):
        device = bench.copy(f"cut-{call}")
        bench.desk.assign(bench.first)
        device.cut_power_at(call, list(Loss)[call // EVERY % len(Loss)], seed=call)
        await device.start()
        order_removal(bench.desk)
        await device.until(lambda device=device: device.off or removed(device))
        await device.kill()
        await device.start()
        await until_reported(device)
        await device.stop()
        shutil.rmtree(device.folder)
