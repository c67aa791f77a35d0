"""A bundle beside the active one on a real device: compared on live requests, and activated only when that is said."""

import asyncio
import contextlib
import os
import signal

import msgspec
import numpy as np
import pytest

from device_agents.deployment import UpdateState
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from edgekit.serving.models.options import ModelSettings
from tests.simulators.device import Desk
from tests.simulators.real_device import RealDevice, publish_real
from tests.simulators.small_models import SURE
from tests.simulators.transport import MemoryBroker


class Shop:
    """A device that runs 1.0.0 and can be told to compare 2.0.0."""

    def __init__(self, folder):
        self.broker = MemoryBroker()
        self.desk = Desk(folder, self.broker)
        self.device = RealDevice(folder / "device", self.broker, self.desk.root)
        self.device.options = {"heartbeat_seconds": 0.1}
        self.folder = folder

    async def open(self, **candidate):
        await self.desk.start()
        await self.device.start()
        self.old = publish_real(self.desk, self.folder / "made", "1.0.0")
        self.desk.assign(self.old)
        await self.device.settled("1.0.0")
        self.new = publish_real(self.desk, self.folder / "made", "2.0.0", **candidate)

    def compare(self, inputs=20, seconds=60):
        self.desk.assign(msgspec.structs.replace(self.new, shadow=inputs, shadow_seconds=seconds))

    async def ask(self, *rows):
        """One request for each row; the active bundle answers."""
        for row in rows:
            answer = await self.device.inference.infer("digits", {"x": np.array([row], np.float32)})
            assert answer.parameters["edgekit_version"] == "1.0.0"
            await asyncio.sleep(0.01)

    def shadow(self):
        model = self.device.reported().models.get("digits")  # reports come up to two seconds after a step
        return model.shadow if model is not None else None


@pytest.fixture
async def shop(tmp_path):
    one = Shop(tmp_path)
    yield one
    await one.device.stop()


async def ended(shop, word, *rows):
    """Ask until the comparison has ended."""

    async def asking():
        while True:
            await shop.ask(*rows)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(asking())
    await shop.device.until(lambda: shop.shadow() is not None and shop.shadow().ended == word)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_bundle_is_compared_and_activated_when_the_assignment_lets_it(shop):
    """The active one answers until then; the report has counts, and nothing of the comparison stays on the disk."""
    await shop.open(gain=1.5)
    shop.compare(inputs=20)
    await ended(shop, "complete", SURE[0], [0.0, 3.0, 1.0])
    shadow = shop.shadow()
    assert (shadow.candidate, shadow.differed, shadow.failed) == (shop.new.sha256[:12], 0, 0)
    assert 20 <= shadow.compared <= 21
    assert shop.device.state.name is UpdateState.SHADOWING
    assert await shop.device.answering() == "1.0.0"
    shop.desk.assign(shop.new)
    await shop.device.settled("2.0.0")
    shop.device.check_rest()


async def test_decisions_that_change_are_counted(shop):
    """A bundle that turns the scores round differs on every sure input."""
    await shop.open(gain=-1.0)
    shop.compare(inputs=10)
    await ended(shop, "complete", SURE[0])
    assert shop.shadow().differed == shop.shadow().compared >= 10


async def test_a_comparison_goes_on_after_a_restart(shop):
    """With the counts of before, also when the process was killed after they were stored."""
    await shop.open(gain=1.5)
    shop.compare(inputs=1000)
    await shop.device.until(lambda: shop.device.state.name is UpdateState.SHADOWING)

    async def asked():
        while (shadow := shop.device.inference.shadowed("digits")) is None or shadow.compared < 5:
            await shop.ask(SURE[0])
            await asyncio.sleep(0.02)

    await asyncio.wait_for(asked(), 60)
    await shop.device.stop()
    await shop.device.start()
    await shop.device.until(lambda: shop.device.inference.shadowed("digits") is not None)
    assert shop.device.state.name is UpdateState.SHADOWING
    assert shop.device.inference.shadowed("digits").compared >= 5
    assert await shop.device.answering() == "1.0.0"


async def test_an_abort_ends_a_comparison(shop):
    """The process of the bundle ends, its files go, and the device runs what it ran."""
    await shop.open()
    shop.compare(inputs=1000)
    await shop.device.until(lambda: shop.device.inference._manager._aside)
    shop.desk.assign(shop.old)
    await shop.device.settled("1.0.0")
    assert not shop.device.inference._manager._aside
    shop.device.check_rest()


async def test_a_device_without_requests_says_so_when_the_time_is_over(shop):
    """It has compared nothing, and waits for the controller."""
    await shop.open()
    shop.compare(inputs=5, seconds=1)
    await shop.device.until(lambda: shop.shadow() is not None and shop.shadow().ended == "time")
    assert shop.shadow().compared == 0
    assert shop.device.state.name is UpdateState.SHADOWING


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"service": ServiceOptions(memory_budget_bytes=24 * 2**20)}, "memory"),
        ({"models": {"digits": ModelSettings(swap="unload-first")}}, "memory"),
    ],
    ids=["too-small", "unload-first"],
)
async def test_a_device_that_cannot_hold_both_says_why(shop, how, says):
    """The active bundle goes on answering."""
    await shop.open()
    await shop.device.stop()
    shop.device.inference = InferenceService(**how)
    await shop.device.start()
    shop.compare()
    await shop.device.until(lambda: shop.shadow() is not None and shop.shadow().ended == says)
    assert await shop.device.answering() == "1.0.0"


async def test_the_first_bundle_of_a_model_has_nothing_to_be_compared_with(tmp_path):
    """The device says so, and activates it when it may."""
    one = Shop(tmp_path)
    await one.desk.start()
    await one.device.start()
    one.new = publish_real(one.desk, tmp_path / "made", "1.0.0")
    one.compare()
    await one.device.until(lambda: one.device.state is not None and one.device.state.name is UpdateState.SHADOWING)
    await one.device.until(lambda: one.shadow() is not None and one.shadow().ended == "no-model")
    one.desk.assign(one.new)
    await one.device.settled("1.0.0")
    await one.device.stop()


class NoMemory(np.ndarray):
    """An array of which no copy can be made."""

    def copy(self, order="C"):
        raise MemoryError


async def test_no_request_fails_because_of_a_comparison(shop):
    """Where no memory is left for a copy, and where more come than are compared: they are answered, and left out."""
    await shop.open(gain=1.5)
    shop.compare(inputs=1000)
    await shop.device.until(lambda: shop.device.inference.shadowed("digits") is not None)
    run = shop.device.inference._shadowing._runs["digits"]
    await shop.device.until(lambda: run.open)
    answer = await shop.device.inference.infer("digits", {"x": SURE.copy().view(NoMemory)})
    assert answer.parameters["edgekit_version"] == "1.0.0"
    assert run.counts.dropped == 1
    await asyncio.gather(*(shop.device.inference.infer("digits", {"x": SURE}) for _ in range(30)))
    assert run.counts.dropped > 10


async def test_a_candidate_whose_process_dies_differs_and_harms_nothing(shop):
    """Killed in the middle, again and again: the active bundle answers, and inputs without an answer are counted."""
    await shop.open(gain=1.5)
    shop.compare(inputs=3)
    await shop.device.until(lambda: shop.device.inference._manager._aside)
    aside = next(iter(shop.device.inference._manager._aside.values()))
    await shop.device.until(lambda: aside.session is not None)

    async def killing():
        while True:
            process = aside.session.runtime._process if aside.session is not None else None
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            await asyncio.sleep(0.05)

    killer = asyncio.create_task(killing())
    await ended(shop, "complete", SURE[0])
    killer.cancel()
    assert shop.shadow().failed > 0
    assert await shop.device.answering() == "1.0.0"
