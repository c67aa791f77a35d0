"""Memory that grows after a load: it is reported once, and the memory plan uses the new size."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from device_agents.options import AgentTimings
from edgekit.bundle.manifest import Manifest
from edgekit.mqtt import messages
from edgekit.serving.models.memory_growth import FAR, PROCESS, Grown, GrowthNotifier, MemorySize
from edgekit.serving.models.memory_plan import MIB
from edgekit.serving.session.memory_usage import MemoryFootprints, rss_bytes
from edgekit.serving.worker.runtime import WorkerRuntime
from edgekit.trust.envelopes import open_envelope
from tests.simulators import crashing
from tests.simulators.alone import alone
from tests.simulators.device import Desk, Device
from tests.simulators.small_models import SURE, onnx_bundle
from tests.simulators.transport import MemoryBroker

LEAK = {"x": np.full((1, 3), crashing.LEAK, np.float32)}


def held(loaded: int, now: int, load: int = 1) -> MemorySize:
    return MemorySize(loaded * MIB, now * MIB, load)


def test_what_stays_far_over_is_told_once_a_load() -> None:
    """In two looks in a row; a burst, and a little, is nothing; each model and the process for itself."""
    notifier = GrowthNotifier()
    assert notifier.check({"a": held(40, 200), PROCESS: held(100, 90)}) == []
    assert notifier.check({"a": held(40, 41), PROCESS: held(100, 400)}) == []
    assert notifier.check({"a": held(40, 300), PROCESS: held(100, 400)}) == [Grown(PROCESS, 100 * MIB, 400 * MIB)]
    assert notifier.check({"a": held(40, 310), PROCESS: held(100, 900)}) == [Grown("a", 40 * MIB, 310 * MIB)]
    assert notifier.check({"a": held(40, 999)}) == []
    assert notifier.check({"a": held(40, 999, load=2)}) == []
    assert notifier.check({"a": held(40, 999, load=2)}) == [Grown("a", 40 * MIB, 999 * MIB)]


@pytest.mark.parametrize(("loaded", "now", "far"), [(1, 32, False), (1, 34, True), (400, 600, False), (400, 601, True)])
def test_far_is_half_as_much_again_and_32_mib(loaded: int, now: int, far: bool) -> None:
    """Whichever is more."""
    assert held(loaded, now).is_far is far


def open_leaking(manifest: Manifest, folder: Path) -> WorkerRuntime:
    return WorkerRuntime(manifest, folder, loader=crashing.LOADER)


async def test_a_worker_that_leaks_is_told_and_others_make_room_for_it(tmp_path: Path) -> None:
    """Nothing is looked at where nothing was asked. What leaked says nothing of the next load, so it is not kept."""
    one, two = (onnx_bundle(tmp_path / name, name=name, batch=None) for name in ("one", "two"))
    kept = MemoryFootprints()
    async with InferenceService(
        load=open_leaking, service=ServiceOptions(memory_budget_bytes=250 * MIB), footprints=kept
    ) as service:
        await service.activate("one", one, tmp_path / "one")
        loaded = service.gauges()["one"]["memory_bytes"]
        assert await service.grown() == []
        await service.infer("one", LEAK)
        assert await service.grown() == []
        assert await service.grown() == []  # nothing was asked since
        await service.infer("one", {"x": SURE})
        (found,) = await service.grown()
        assert found.model == "one"
        assert found.bytes - found.loaded_bytes > 0.9 * crashing.LEAK_BYTES
        await service.infer("one", {"x": SURE})
        assert await service.grown() == []
        measured = kept.get(one.digest)
        assert measured is not None
        assert measured < 2 * loaded
        kept.put(two.digest, 100 * MIB)
        await service.activate("two", two, tmp_path / "two")
        assert service.gauges()["one"]["loaded"] == 0  # 100 MiB fit beside what was measured, not beside the leak
    assert loaded < 100 * MIB


def test_the_agent_itself_is_told_and_its_only_model_is_taken_to_hold_it(tmp_path: Path) -> None:
    """With two models in one process nobody knows which."""
    alone(leak_in_the_agent, tmp_path)


def leak_in_the_agent(folder: Path) -> None:
    asyncio.run(_leak_in_the_agent(folder))


async def _leak_in_the_agent(folder: Path) -> None:
    bundles = {name: onnx_bundle(folder / name, name=name, batch=None) for name in ("one", "two")}
    async with InferenceService(load=crashing.open_it) as service:
        await service.activate("one", bundles["one"], folder / "one")
        leaks = 4 + int((FAR - 1) * rss_bytes() / crashing.LEAK_BYTES)
        for _ in range(leaks):
            await service.infer("one", LEAK)
        assert await service.grown() == []
        await service.infer("one", {"x": SURE})
        (found,) = await service.grown()
        assert found.model == PROCESS
        assert service.gauges()["one"]["memory_bytes"] > 3 * crashing.LEAK_BYTES
        await service.activate("two", bundles["two"], folder / "two")
        before = service.gauges()["two"]["memory_bytes"]
        for _ in range(4):
            await service.infer("two", LEAK)
            await service.grown()
        assert service.gauges()["two"]["memory_bytes"] == before


async def test_the_controller_hears_of_growth(tmp_path: Path) -> None:
    """Signed, with the sizes; of a model by its name, else of the agent."""
    desk = Desk(tmp_path / "desk", MemoryBroker())
    await desk.start()
    device = Device(tmp_path / "device", desk.broker, desk.root)
    device.timings = AgentTimings(memory_survey_seconds=0.02)
    device.inference.growing = [Grown("digits", 40 * MIB, 200 * MIB), Grown(PROCESS, 100 * MIB, 500 * MIB)]
    await device.start()

    def told() -> list[messages.Event]:
        events = [open_envelope(p, messages.Event, device.signer.public_key) for p in desk.said("event")]
        return [event for event in events if event.kind.endswith("-grown")]

    await device.until(lambda: len(told()) == 2)
    first, second = told()
    assert (first.kind, first.model) == ("model-grown", "digits")
    assert first.message == "model digits holds 200 MiB, 40 MiB after it was loaded"
    assert first.detail == {"bytes": 200 * MIB, "loaded_bytes": 40 * MIB}
    assert (second.kind, second.model) == ("agent-grown", "")
    await device.stop()
