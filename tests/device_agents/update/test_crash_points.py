"""The real agent over real files and a real runtime, with a power cut before any call that changes the file system.

A few dozen points are in the default run; `pytest -m soak` on this file runs every point.
"""

import shutil

import pytest

from tests.simulators.crash import Loss
from tests.simulators.device import Desk
from tests.simulators.disk import PowerCut
from tests.simulators.real_device import RealDevice, publish_real
from tests.simulators.transport import MemoryBroker

LONG_SECONDS = 30  # of the whole file: it starts early, see tests/conftest.py

LOSSES = tuple(Loss)


class Bench:
    """A desk with two versions, and a device at rest with the first one, to be copied."""

    def __init__(self, folder):
        self.folder = folder
        self.desk = Desk(folder / "desk", MemoryBroker())

    async def prepare(self):
        await self.desk.start()
        self.first = publish_real(self.desk, self.folder / "made", "1.0.0")
        self.second = publish_real(self.desk, self.folder / "made", "2.0.0", gain=2.0)
        device = self.device("base")
        self.desk.assign(self.first)
        await device.start()
        await device.settled("1.0.0")
        await device.stop()

    def device(self, name):
        return RealDevice(self.folder / name, self.desk.broker, self.desk.root)

    def copy(self, name):
        shutil.copytree(self.folder / "base", self.folder / name)
        return self.device(name)

    async def count(self):
        """Kinds of the calls that one undisturbed update makes."""
        device = self.copy("counted")
        device.cut_power_at(0, Loss.KEPT)
        kinds = device.calls.kinds
        await device.start()
        self.desk.assign(self.second)
        await device.settled("2.0.0")
        await device.stop()
        return kinds

    async def cut(self, call, loss):
        """Cut an update at one call, and hold what comes up again to everything that was promised."""
        device = self.copy(f"{loss.value}-{call}")
        self.desk.assign(self.first)
        device.cut_power_at(call, loss, seed=call)
        await self.until_cut(device)
        await device.kill()
        await device.start()
        assert await device.answering() in ("1.0.0", "2.0.0")
        assert device.state.active.version == await device.answering()
        await device.settled("2.0.0")
        assert await device.answering() == "2.0.0"
        await device.until(lambda: device.reported().models["digits"].version == "2.0.0")
        device.check_rest()
        await device.stop()
        shutil.rmtree(device.folder)

    async def until_cut(self, device):
        """The update, up to the cut; the start itself may be cut too."""
        try:
            await device.start()
        except PowerCut:
            self.desk.assign(self.second)
            return
        self.desk.assign(self.second)
        await device.until(lambda: device.off or device.rests("2.0.0"))


@pytest.fixture
async def bench(tmp_path):
    made = Bench(tmp_path)
    await made.prepare()
    return made


# Each cut is an update of its own, with restarts: about 20 updates in 25 s.
async def test_power_may_go_at_any_call_of_an_update(bench):
    """Every seventeenth call, with each kind of loss in turn: old or new answers at once, then new, and no litter."""
    kinds = await bench.count()
    assert len(kinds) > 100
    assert {"create", "write", "fsync", "rename", "unlink", "rmdir", "mkdir", "truncate"} <= set(kinds)
    for call in range(1, len(kinds) + 1, 17):
        await bench.cut(call, LOSSES[call % len(LOSSES)])


@pytest.mark.soak
@pytest.mark.parametrize("loss", LOSSES)
async def test_power_may_go_at_every_call_of_an_update(bench, loss):
    """All of them."""
    for call in range(1, len(await bench.count()) + 1):
        await bench.cut(call, loss)
