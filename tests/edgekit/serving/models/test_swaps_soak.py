"""A thousand switches of real models under load. Run: pytest -m soak tests/edgekit/serving/models/test_swaps_soak.py"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from device_agents.inference.service import InferenceService
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.memory_usage import few_arenas, rss_bytes
from tests.simulators.small_models import SURE, onnx_bundle

SWAPS, SETTLED = 1000, 100  # memory is compared from the latter on: until then pools fill
GROWTH = 0.05


@pytest.mark.soak
@pytest.mark.parametrize(
    ("swap", "isolation", "swaps"),
    [("load-first", "thread", SWAPS), ("unload-first", "thread", SWAPS), ("load-first", "process", SWAPS // 5)],
)
async def test_a_thousand_switches_under_load(tmp_path: Path, swap, isolation, swaps) -> None:
    """No request fails, every answer is of the bundle that it names, and the memory does not grow."""
    few_arenas()
    bundles = [
        (onnx_bundle(tmp_path / f"{n}", version=f"{n}.0.0", tag=float(n), work=200), tmp_path / f"{n}") for n in (1, 2)
    ]
    answered, wrong = 0, []
    held: list[int] = []
    stop = asyncio.Event()

    async with InferenceService(options=ModelOptions(swap=swap, isolation=isolation)) as service:

        async def client() -> None:
            nonlocal answered
            while not stop.is_set():
                found = await service.infer("small", {"x": SURE})
                answered += 1
                if f"{found.outputs['tag'][0, 0]:.0f}.0.0" != found.version:
                    wrong.append(found)
                await asyncio.sleep(0)

        await service.activate("small", *bundles[1])
        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        for n in range(swaps):
            seen = answered
            await service.activate("small", *bundles[n % 2])
            while answered < seen + 8:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            if n % 20 == 0:
                held.append(await asyncio.to_thread(rss_bytes))
        stop.set()
        await asyncio.gather(*clients)
        assert service.counters()["small"]["swaps"] == swaps + 1
        assert service.counters()["small"]["errors"] == 0
    assert wrong == []
    early, late = held[SETTLED // 20 : SETTLED // 20 + 5], held[-5:]
    print(f"{swap}: {answered} answers, {min(early) / 2**20:.1f} -> {min(late) / 2**20:.1f} MiB")
    assert min(late) <= min(early) * (1 + GROWTH)
