"""The collector on real models: what it keeps of answers, its limits, its command, and a disk that fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from device_agents.inference.cloud.budget_rules import Budget
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from device_agents.spool import collector
from device_agents.spool.collector import MOST_WAITING, STATE_FILE, CollectOptions, Collector
from device_agents.spool.rules import Rule
from device_agents.spool.store import Spool
from edgekit.errors import CloudError, DiskError, EdgekitError
from edgekit.mqtt.command_arguments import CollectArguments
from edgekit.mqtt.sample_reasons import HARD, SampleReason
from edgekit.samples.sample import Sample, decode_sample, to_array
from edgekit.tensors import Array
from tests.simulators.cloud import CLOUD_OUTPUTS, MemoryCloud
from tests.simulators.disk import FaultyDisk, full
from tests.simulators.small_models import SURE, UNSURE, onnx_bundle, softmax

NOTHING, UNLIMITED = Rule(), Budget()


class HeldClock:
    """Clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class Rig:
    """A real service with a real spool; sealing is left out, so that samples can be read."""

    def __init__(
        self, *, rule: Rule = NOTHING, budget: Budget = UNLIMITED, disk: FaultyDisk | None = None, chance: float = 0.5
    ) -> None:
        self.disk, self.clock, self.chance = disk or FaultyDisk(), HeldClock(), chance
        self.cloud = MemoryCloud(CLOUD_OUTPUTS)
        self.told: list[str] = []
        self.start(CollectOptions(rule, budget))

    def start(self, options: CollectOptions) -> None:
        """Start, as after a restart, on the same disk."""
        self.spool = Spool(self.disk, 10**9)
        self.collector = Collector(
            "pi-1",
            options,
            self.spool,
            lambda data, context: data,
            self.disk,
            self.clock,
            lambda: self.chance,
            lambda kind, message: self.told.append(kind),
        )
        self.options = options

    def samples(self) -> list[Sample]:
        return [decode_sample(self.spool.read(name).sealed) for name in self.disk.list("spool")]


@contextlib.asynccontextmanager
async def serving(rig: Rig, folder: Path, **options: object) -> AsyncIterator[Callable[..., object]]:
    """A function that sends one request, and waits until what was chosen is stored."""
    service = InferenceService(cloud=rig.cloud, clock=rig.clock, service=ServiceOptions(**options))  # type: ignore[arg-type]
    async with service:
        await service.activate("small", onnx_bundle(folder, batch=None), folder)
        service.give_samples(rig.collector)
        task = asyncio.create_task(rig.collector.run())

        async def ask(x: Array = UNSURE, route: str = "auto") -> None:
            with contextlib.suppress(EdgekitError):
                await service.infer("small", {"x": x}, route=route)

        yield ask
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_rows_are_kept_with_both_answers(tmp_path: Path) -> None:
    """Each unsure row of a request is a sample of its own; sure rows are none."""
    rig = Rig(rule=Rule(HARD))
    rig.cloud.outputs = {name: np.repeat(value, 2, axis=0) for name, value in CLOUD_OUTPUTS.items()}
    x = np.concatenate([UNSURE, SURE, UNSURE + 0.05])
    async with serving(rig, tmp_path) as ask:
        await ask(x)
    found = rig.samples()
    assert [one.reason for one in found] == ["disagreement"] * 2
    for one, row in zip(found, (0, 2), strict=True):
        np.testing.assert_array_equal(to_array(one.inputs["x"]), x[row])
        np.testing.assert_allclose(to_array(one.local["scores"]), softmax(x)[row], atol=1e-6)
        np.testing.assert_array_equal(to_array(one.cloud["scores"]), CLOUD_OUTPUTS["scores"][0])
        assert (one.device, one.model, one.version, one.at) == ("pi-1", "small", "1.0.0", 1_000_000.0)


async def test_without_a_rule_nothing_is_kept(tmp_path: Path) -> None:
    """Off by default."""
    rig = Rig()
    async with serving(rig, tmp_path) as ask:
        await ask()
        await ask(SURE)
    assert rig.samples() == []
    assert not rig.collector.counts


@pytest.mark.parametrize("policy", ["never", "allowed"])
async def test_what_may_not_leave_is_never_kept(tmp_path: Path, policy: str) -> None:
    """The policy of the inputs, and what the client asked for."""
    rig = Rig(rule=Rule(HARD, share=1.0))
    async with serving(rig, tmp_path, send_inputs=policy) as ask:
        await ask(UNSURE, "local-only")
        assert not rig.collector.counts
        await ask(UNSURE)
    assert len(rig.samples()) == (policy == "allowed")


async def test_a_cloud_that_is_away_and_none_at_all(tmp_path: Path) -> None:
    """Unsure answers are kept also where nobody was asked."""
    rig = Rig(rule=Rule(HARD))
    rig.cloud.fault = CloudError("away")
    async with serving(rig, tmp_path) as ask:
        await ask()
    (one,) = rig.samples()
    assert (one.reason, one.cloud, one.cloud_model) == ("unsure", {}, "")


async def test_a_share_is_taken_by_chance(tmp_path: Path) -> None:
    """Below the share an answer is kept, whatever it is."""
    rig = Rig(rule=Rule((), share=0.3), chance=0.2)
    async with serving(rig, tmp_path) as ask:
        await ask(SURE)
        rig.chance = 0.3
        await ask(SURE)
    assert [one.reason for one in rig.samples()] == ["random"]


async def test_limits_that_were_reached_before_the_clock_was_set_back_end_a_day_later(tmp_path: Path) -> None:
    """The day began anew at each sample, and never ended; now a restart does not begin it anew either."""
    rig = Rig(rule=Rule(HARD), budget=Budget(calls=3), chance=0.0)
    async with serving(rig, tmp_path) as ask:
        for _ in range(4):
            await ask()
        rig.clock.now -= 500_000
        await ask()
        await asyncio.sleep(0.1)
    rig.clock.now += 43_200
    rig.start(rig.options)
    async with serving(rig, tmp_path / "again") as ask:
        await ask()
        assert rig.collector.counts == {"limit": 1}
        rig.clock.now += 43_200
        await ask()
    assert len(rig.samples()) == 4


async def test_the_limits_of_a_day_hold_across_restarts(tmp_path: Path) -> None:
    """Samples and bytes; the next day begins anew. A restart may give up a little, and never has more."""
    rig = Rig(rule=Rule(HARD), budget=Budget(calls=3), chance=0.0)
    async with serving(rig, tmp_path) as ask:
        for _ in range(5):
            await ask()
    assert len(rig.samples()) == 3
    assert rig.collector.counts == {"kept": 3, "limit": 2}
    rig.start(rig.options)
    async with serving(rig, tmp_path / "again") as ask:
        await ask()
        assert rig.collector.counts == {"limit": 1}
        rig.clock.now += 86_400
        await ask()
    assert len(rig.samples()) == 4
    small = Rig(rule=Rule(HARD), budget=Budget(bytes=50), chance=0.0)
    async with serving(small, tmp_path / "small") as ask:
        await ask()
        await ask()
    assert len(small.samples()) == 1


async def test_an_operator_asks_for_samples(tmp_path: Path) -> None:
    """Up to a number or a time, across restarts, within the limits of the owner; and ends it."""
    rig = Rig(budget=Budget(calls=100))
    async with serving(rig, tmp_path) as ask:
        answer = await rig.collector.answer(
            CollectArguments(samples=2, seconds=60.0, reasons=(SampleReason.DISAGREEMENT,))
        )
        assert answer.ok
        await ask()
    rig.start(rig.options)
    async with serving(rig, tmp_path / "again") as ask:
        await ask()
        await ask()
    assert len(rig.samples()) == 2
    async with serving(rig, tmp_path / "more") as ask:
        await rig.collector.answer(CollectArguments(samples=2, seconds=60.0))
        rig.clock.now += 60.0
        await ask()
        await rig.collector.answer(CollectArguments(samples=2, seconds=60.0, model="other"))
        await ask()
        await rig.collector.answer(CollectArguments(samples=2, seconds=60.0))
        ended = await rig.collector.answer(CollectArguments())
        await ask()
    assert (ended.ok, ended.detail["waiting"]) == (True, 2)
    assert len(rig.samples()) == 2
    refused = await rig.collector.answer(CollectArguments(samples=5, reasons=()))
    assert not refused.ok


async def test_a_share_alone_keeps_answers_by_chance_and_says_so(tmp_path: Path) -> None:
    """Also unsure ones with which the cloud tier disagrees: a certificate needs a fair sample."""
    rig = Rig(chance=0.4)
    async with serving(rig, tmp_path) as ask:
        assert (await rig.collector.answer(CollectArguments(samples=5, reasons=(), share=0.5))).ok
        await ask()
        rig.chance = 0.6
        await ask()
    assert [one.reason for one in rig.samples()] == [SampleReason.RANDOM]


async def test_a_full_disk_is_told_and_answers_go_on(tmp_path: Path) -> None:
    """The event comes once; with space again, samples are kept again. A command that cannot be stored fails."""
    rig = Rig(rule=Rule(HARD))
    async with serving(rig, tmp_path) as ask:
        rig.disk.fault = full
        for _ in range(3):
            await ask()
        with pytest.raises(DiskError):
            await rig.collector.answer(CollectArguments(samples=5))
        await asyncio.sleep(0.1)
        assert rig.collector.counts == {"disk": 3}
        assert rig.told == ["samples-not-kept"]
        rig.disk.fault = None
        await ask()
    assert rig.collector.counts["kept"] == 1


async def test_a_slow_disk_takes_no_memory(tmp_path: Path) -> None:
    """Only so many samples wait for it; the others are counted."""
    rig = Rig(rule=Rule(HARD))
    async with serving(rig, tmp_path) as ask:
        n = MOST_WAITING + 10
        rig.cloud.outputs = {name: np.repeat(value, n, axis=0) for name, value in CLOUD_OUTPUTS.items()}
        await ask(np.repeat(UNSURE, n, axis=0))
        assert rig.collector.counts["busy"] == 10
    assert len(rig.samples()) == MOST_WAITING


async def test_a_request_does_not_fail_where_memory_for_a_copy_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample is left out and counted; the client gets its answer."""

    def no_memory(*arguments: object) -> None:
        raise MemoryError

    rig = Rig(rule=Rule(HARD))
    monkeypatch.setattr(collector, "_copied", no_memory)
    async with serving(rig, tmp_path) as ask:
        await ask()
    assert rig.collector.counts["busy"] == 1
    assert rig.samples() == []


@pytest.mark.parametrize("damage", [b"{]", b'{"as\xff": 1}'])
async def test_a_damaged_state_begins_anew(tmp_path: Path, damage: bytes) -> None:
    """And says so in the log; samples are not lost."""
    disk = FaultyDisk()
    disk.write(STATE_FILE, damage)
    rig = Rig(rule=Rule(HARD), disk=disk)
    async with serving(rig, tmp_path) as ask:
        await ask()
    assert len(rig.samples()) == 1
