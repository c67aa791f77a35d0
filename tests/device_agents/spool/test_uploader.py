"""Samples go from a device's spool to the store exactly once, whatever is lost, doubled, stopped or cut off."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from device_agents.control.requests import RequestClient
from device_agents.spool.rules import Entry
from device_agents.spool.store import FOLDER, Spool, Spooled
from device_agents.spool.uploader import Timings, Uploader
from edgekit.mqtt import topics
from edgekit.mqtt.messages import Answer, encode
from edgekit.mqtt.sample_parts import PART_BYTES
from edgekit.mqtt.sample_reasons import SampleReason
from edgekit.samples.names import parse_name
from edgekit.samples.stored import decode_stored
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.disk import FaultyDisk, PowerCut
from tests.simulators.transport import MemoryTransport, connect

FAST = Timings(survey_seconds=0.02, answer_seconds=0.3, shortest_pause=0.02)


class Rig:
    """A spool with an uploader, beside a control side in the same process."""

    def __init__(self, side: ControlSide, disk: FaultyDisk) -> None:
        self.side, self.spool = side, Spool(disk, 10**9)
        self.transport = MemoryTransport(side.broker, "pi-1-agent")
        self.requests = RequestClient(self.transport, fleet=FLEET, device="pi-1")
        self.held, self.allowed = "", True
        self.stored = asyncio.Event()
        self.uploader = Uploader(
            "pi-1",
            FLEET,
            spool=self.spool,
            requests=self.requests,
            transport=self.transport,
            signer=side.devices["pi-1"].signer,
            hold=lambda: self.held,
            allowed=lambda model: self.allowed,
            stored=self.stored,
            timings=FAST,
        )

    def put(self, reason: SampleReason = SampleReason.UNSURE, size: int = 100) -> str:
        sample = self.spool.next_id(reason, secrets.token_hex(8))
        assert self.spool.put(sample, Spooled("m", "d" * 64, 1.0, secrets.token_bytes(size)))
        self.stored.set()
        return sample

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        await connect(self.transport)
        await self.requests.start()
        task = asyncio.create_task(self.uploader.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.transport.stop()


@pytest.fixture
async def side(tmp_path: Path) -> AsyncIterator[ControlSide]:
    async with ControlSide(tmp_path) as side:
        await side.device("pi-1")
        yield side


def stored(side: ControlSide) -> list[str]:
    return [name.id for text in side.store.list("samples") if (name := parse_name(text))]


async def until(holds: Callable[[], object]) -> None:
    for _ in range(6000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("condition not met")


async def test_the_most_valuable_goes_first_and_leaves_the_device_when_it_is_stored(side: ControlSide) -> None:
    """Small and large ones; the bytes are the same."""
    rig = Rig(side, FaultyDisk())
    low, high = rig.put(SampleReason.RANDOM), rig.put(SampleReason.REFUTED, 5 * PART_BYTES + 1)
    sealed = {sample: rig.spool.read(sample).sealed for sample in (low, high)}
    async with rig.running():
        await until(lambda: rig.uploader.counts == {"sent": 2})
        later = rig.put()
        await until(lambda: not len(rig.spool))
    assert sorted(stored(side)) == sorted([low, high, later])
    order = [one.topic for one in side.broker.published if one.topic.endswith("/sample")]
    assert len(order) == 8
    for text in side.store.list("samples"):
        if (name := parse_name(text)) and name.id in sealed:
            assert decode_stored(side.store.get(text)).sealed == sealed[name.id]


async def test_a_link_that_is_not_free_sends_nothing(side: ControlSide) -> None:
    """Also in the middle of a sample; then it goes on where it was."""
    rig = Rig(side, FaultyDisk())
    sample = rig.put(size=6 * PART_BYTES)
    rig.held = "the link is metered"
    sent = lambda: [one for one in side.broker.published if one.topic.endswith("/sample")]  # noqa: E731
    async with rig.running():
        await until(lambda: rig.uploader.waiting == "the link is metered")
        await asyncio.sleep(0.1)
        assert sent() == []
        rig.held = ""
        await until(lambda: len(sent()) >= 3)
        rig.held = "metered again"
        await until(lambda: rig.uploader.waiting == "metered again" or not len(rig.spool))
        rig.held = ""
        await until(lambda: not len(rig.spool))
    assert stored(side) == [sample]
    assert len(sent()) <= 6 + 2


async def test_inputs_that_may_no_longer_leave_are_removed_unsent(side: ControlSide) -> None:
    """The settings changed after the sample was kept."""
    rig = Rig(side, FaultyDisk())
    rig.put()
    rig.allowed = False
    async with rig.running():
        await until(lambda: rig.uploader.counts == {"withdrawn": 1})
    assert not len(rig.spool)
    assert not [one for one in side.broker.published if one.topic.endswith("/sample")]


async def test_losses_and_repetitions_on_the_way(side: ControlSide) -> None:
    """A broker that loses, doubles and reorders messages delivers each sample once."""
    rig = Rig(side, FaultyDisk())
    samples = [rig.put(size=size) for size in (100, 3 * PART_BYTES, PART_BYTES, 2 * PART_BYTES + 5)]
    side.broker.drop, side.broker.duplicate, side.broker.reorder = 0.2, 0.3, 0.2
    async with rig.running():
        await until(lambda: not len(rig.spool))
    assert sorted(stored(side)) == sorted(samples)


async def test_no_controller_and_no_broker_lose_nothing(side: ControlSide) -> None:
    """The controller is killed in the middle of a sample, and the broker goes away."""
    rig = Rig(side, FaultyDisk())
    samples = [rig.put(size=4 * PART_BYTES) for _ in range(20)]  # so many that the end does not come between two looks
    async with rig.running():
        await until(lambda: len(stored(side)) >= 1)
        await side.kill_controller()
        await asyncio.sleep(0.5)
        assert len(rig.spool) >= 1
        side.broker.stop()
        await asyncio.sleep(0.1)
        side.broker.start()
        await side.start_controller()
        await until(lambda: not len(rig.spool))
    assert sorted(stored(side)) == sorted(samples)


async def test_a_full_quota_waits_and_a_damaged_file_goes(side: ControlSide) -> None:
    """Busy is no loss; a sample that cannot be read is counted and does not hold up the others."""
    await side.stop_controller()
    side.options = msgspec.structs.replace(side.options, sample_quota_bytes=10)
    await side.start_controller()
    disk = FaultyDisk()
    rig = Rig(side, disk)
    kept, damaged = rig.put(), rig.put(SampleReason.REFUTED)
    disk.files[f"{FOLDER}/{damaged}"] = b"\x00"
    async with rig.running():
        await until(lambda: "takes no samples now" in rig.uploader.waiting)
    assert rig.uploader.counts == {"damaged": 1}
    assert rig.spool.next() == Entry(kept, rig.spool.used_bytes)


@pytest.mark.parametrize("retry", [float("nan"), float("inf"), -1.0, 1e300])
async def test_odd_answers_neither_stop_the_agent_nor_lose_a_sample(side: ControlSide, retry: float) -> None:
    """Answers are not signed: numbers that are none, and acknowledgements that do not fit."""
    await side.stop_controller()
    rig = Rig(side, FaultyDisk())
    sample = rig.put()
    forger = MemoryTransport(side.broker, "forger")
    await connect(forger)
    async with rig.running() as task:
        for answer in (
            Answer(sample, error="busy", retry_seconds=retry),
            Answer(sample, -5, 1),
            Answer(sample, 7, 3),
            Answer(sample, 2**60, 2**60),
        ):
            await forger.publish(topics.answer(FLEET, "pi-1"), encode(answer), qos=1)
            await asyncio.sleep(0.05)
        assert not task.done()
        assert len(rig.spool) == 1
    await forger.stop()


async def _life(side: ControlSide, disk: FaultyDisk, ids: list[str]) -> bool:
    """A device's life until all samples are sent; True if its power failed before."""
    try:
        rig = Rig(side, disk)
        while len(ids) < 3:
            ids.append(rig.put(size=PART_BYTES + 1))
    except PowerCut:
        return True
    async with rig.running() as task:
        await until(lambda: task.done() or not len(rig.spool))
        return task.done() and isinstance(task.exception(), PowerCut)


async def test_a_power_cut_at_any_change_of_the_disk_loses_and_doubles_nothing(side: ControlSide) -> None:
    """Each stored sample arrives once, whenever the power fails."""
    for cut_at in range(1, 60):
        disk, ids, before = FaultyDisk(cut_at=cut_at), list[str](), set(stored(side))
        failed = await _life(side, disk, ids)
        again = disk.after_power_cut()
        there = {name for name in again.list(FOLDER) if len(name) == 26}
        assert set(ids) <= there | set(stored(side))
        assert not await _life(side, again, ids)
        new = [one for one in stored(side) if one not in before]
        assert len(new) == len(set(new))
        assert set(ids) <= set(new)
        if not failed:
            assert cut_at > 9
            return
    raise AssertionError("the life of the device never ended")
