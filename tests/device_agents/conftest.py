"""A control side and one device on an in-memory broker."""

import pytest

from tests.simulators.device import Desk, Device
from tests.simulators.transport import MemoryBroker


@pytest.fixture
async def desk(tmp_path):
    made = Desk(tmp_path / "desk", MemoryBroker())
    await made.start()
    return made


@pytest.fixture
async def device(tmp_path, desk):
    made = Device(tmp_path / "device", desk.broker, desk.root)
    await made.start()
    yield made
    if not made.task.done():
        await made.stop()
