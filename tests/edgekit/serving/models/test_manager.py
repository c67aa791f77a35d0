"""Models within a memory budget: unloaded, loaded again, and switched without a gap."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.manifest import Manifest
from edgekit.errors import EdgekitError, NotFoundError, RuntimeLoadError
from edgekit.runtimes import open_runtime
from edgekit.serving.models import load_progress
from edgekit.serving.models.manager import ModelManager
from edgekit.serving.models.memory_plan import MIB, SETTLE_SECONDS, MemoryBudgetError
from edgekit.serving.models.model import RETRY_LOAD_SECONDS
from edgekit.serving.models.options import ModelOptions, ModelSettings
from edgekit.serving.session.memory_usage import MemoryFootprints
from edgekit.serving.session.session import DeadlineError, OverloadedError
from edgekit.tensors import Array
from tests.simulators.small_models import SURE, onnx_bundle

X = {"x": SURE}


class Sized:
    """A real runtime that claims a size, loads when the test lets it, and must not be used after it was closed."""

    def __init__(self, setup: Setup, manifest: Manifest, folder: Path) -> None:
        self._setup, self._name, self.version = setup, manifest.name, manifest.version
        if self._name in setup.broken or manifest.version in setup.broken:
            raise RuntimeLoadError("the disk failed")
        assert setup.loading[self._name].wait(10)
        self._real = open_runtime(manifest, folder)
        self.inputs, self.outputs, self.provider = self._real.inputs, self._real.outputs, self._real.provider
        self.closed = False
        setup.held.append(self)
        setup.most = max(setup.most, sum(one.memory_bytes() for one in setup.held))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert not self.closed
        assert self._setup.running.wait(10)
        return self._real.run(inputs)

    def memory_bytes(self) -> int:
        return self._setup.sizes[self._name] * MIB

    def close(self) -> None:
        self.closed = True
        self._setup.held.remove(self)
        self._real.close()


class Gates(dict[str, threading.Event]):
    """Events by name that are set until a test clears them."""

    def __missing__(self, name: str) -> threading.Event:
        self[name] = threading.Event()
        self[name].set()
        return self[name]


class Setup:
    """A model manager over real models that claim the sizes which the test gives them, in MiB."""

    def __init__(self, folder: Path, sizes: dict[str, int], *, budget: int, settings: dict[str, ModelSettings]) -> None:
        self.folder, self.sizes, self.now = folder, sizes, 0.0
        self.held: list[Sized] = []
        self.most = 0
        self.broken: set[str] = set()
        self.loading, self.running = Gates(), threading.Event()
        self.running.set()
        self.footprints = MemoryFootprints()
        own = {name: one.over(ModelOptions(queue_limit=3)) for name, one in settings.items()}
        self.manager = ModelManager(
            lambda manifest, folder: Sized(self, manifest, folder),
            lambda name: own.get(name, ModelOptions(queue_limit=3)),
            budget_bytes=budget * MIB,
            footprints=self.footprints,
            clock=lambda: self.now,
        )

    async def add(self, name: str, version: int = 1) -> Manifest:
        folder = self.folder / f"{name}-{version}"
        manifest = onnx_bundle(folder, name=name, version=f"{version}.0.0", tag=float(version))
        await self.manager.activate(name, manifest, folder)
        return manifest

    async def ask(self, name: str, deadline: float | None = None) -> str:
        """The version that answered, checked against the constant in its answer."""
        session = await self.manager.acquire(name, deadline)
        found = await session.run(X, deadline=deadline)
        assert f"{found['tag'][0, 0]:.0f}.0.0" == session.manifest.version
        return session.manifest.version

    @property
    def loaded(self) -> list[str]:
        return sorted(name for name, model in self.manager.all().items() if model.session is not None)


@pytest.fixture
def setup(tmp_path: Path):
    def make(budget: int = 100, settings: dict[str, ModelSettings] | None = None, **sizes: int) -> Setup:
        return Setup(tmp_path, sizes, budget=budget, settings=settings or {})

    return make


async def test_the_longest_unused_is_put_out_and_comes_back_when_it_is_asked(setup) -> None:
    """Three models of which two fit: the requested one is loaded, and the budget holds."""
    made = setup(a=40, b=40, c=40)
    for name in "abc":
        await made.add(name)
    assert made.loaded == ["b", "c"]
    made.now += SETTLE_SECONDS
    assert await made.ask("b") == "1.0.0"
    assert await made.ask("a") == "1.0.0"
    assert made.loaded == ["a", "b"]
    assert made.most <= 120 * MIB  # the second time the size was known before
    counters = {name: dict(model.counters) for name, model in made.manager.all().items()}
    assert counters["a"] == {"swaps": 1, "loads": 2, "evictions": 1}
    assert counters["c"] == {"swaps": 1, "loads": 1, "evictions": 1}
    await made.manager.close()
    assert made.held == []


async def test_a_pinned_model_stays(setup) -> None:
    """Another is unloaded, though used later. A model that does not fit beside the pinned one is refused."""
    made = setup(a=40, b=40, c=40, huge=70, settings={"a": ModelSettings(pinned=True)})
    for name in "abc":
        await made.add(name)
    assert made.loaded == ["a", "c"]
    made.footprints.put((await _manifest(made, "huge")).digest, 70 * MIB)
    with pytest.raises(MemoryBudgetError, match=r"huge needs 70\.0 MiB, the budget is 100\.0 MiB and 40\.0 MiB of it"):
        await made.add("huge")
    assert made.loaded == ["a", "c"]
    await made.manager.close()


async def _manifest(made: Setup, name: str) -> Manifest:
    return onnx_bundle(made.folder / f"{name}-1", name=name, version="1.0.0", tag=1.0)


async def test_a_model_that_is_larger_than_it_looked_is_measured_and_judged(setup) -> None:
    """A small artifact may hold much: after its load others are unloaded, or it is refused, and its size is kept."""
    made = setup(a=40, b=90, c=300)
    await made.add("a")
    await made.add("b")
    assert made.loaded == ["b"]
    with pytest.raises(MemoryBudgetError, match=r"c needs 300\.0 MiB"):
        await made.add("c")
    assert made.loaded == ["b"]
    assert [one.version for one in made.held] == ["1.0.0"]
    assert made.footprints.get((await _manifest(made, "c")).digest) == 300 * MIB
    await made.manager.close()


async def test_a_model_that_grows_in_its_process_is_seen(setup) -> None:
    """The present size counts when another model is loaded, not the size after the load."""
    made = setup(a=20, b=20, c=20)
    await made.add("a")
    await made.add("b")
    made.sizes["a"] = 70
    await made.add("c")
    assert made.loaded == ["b", "c"]
    await made.manager.close()


async def test_two_models_that_do_not_fit_together_do_not_thrash(setup) -> None:
    """With requests for both, each is loaded once per settling time, and all waiting requests are answered."""
    made = setup(a=60, b=60)
    await made.add("a")
    await made.add("b")

    async def client(name: str) -> None:
        for _ in range(20):
            await made.ask(name)
            await asyncio.sleep(0)

    async def time() -> None:
        while True:
            await asyncio.sleep(0.005)
            made.now += 0.1

    clock = asyncio.ensure_future(time())
    await asyncio.gather(client("a"), client("b"))
    clock.cancel()
    loads = sum(model.counters["loads"] for model in made.manager.all().values())
    assert loads <= 3 + made.now / SETTLE_SECONDS
    await made.manager.close()


async def test_requests_wait_for_a_model_within_their_deadline_and_in_bounds(setup) -> None:
    """One load serves all waiting requests. A late one fails, one above the limit is refused, and the load goes on."""
    made = setup(a=60, b=60)
    await made.add("a")
    await made.add("b")
    made.now += SETTLE_SECONDS
    made.loading["a"].clear()
    waiting = [asyncio.ensure_future(made.ask("a")) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineError, match="while model a was being loaded"):
        await made.ask("a", deadline=made.now + 0.02)
    third = asyncio.ensure_future(made.ask("a"))
    await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError, match="a has 3 requests waiting"):
        await made.ask("a")
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    made.loading["a"].set()
    assert await asyncio.gather(*waiting) == ["1.0.0", "1.0.0"]
    assert made.manager.get("a").counters["loads"] == 2
    await made.manager.close()


async def test_nothing_is_loaded_for_those_who_have_gone(setup) -> None:
    """A model whose load had to wait is not loaded when no request waits for it any more."""
    made = setup(a=60, b=60)
    await made.add("a")
    await made.add("b")
    with pytest.raises(DeadlineError):
        await made.ask("a", deadline=made.now + 0.02)
    made.now += SETTLE_SECONDS
    await asyncio.wait_for(made.manager.get("a").loading, 10)
    assert made.loaded == ["b"]
    await made.manager.close()


async def test_a_model_that_cannot_be_loaded_again_says_so_and_is_tried_later(setup, monkeypatch) -> None:
    """Each request gets the reason without another load; after a while the load is tried again."""
    made = setup(a=60, b=60)
    await made.add("a")
    await made.add("b")
    made.now += SETTLE_SECONDS
    made.broken.add("a")
    for _ in range(3):
        with pytest.raises(RuntimeLoadError, match="a could not be loaded again: the disk failed"):
            await made.ask("a")
    made.broken.clear()
    with pytest.raises(RuntimeLoadError):
        await made.ask("a")
    made.now += RETRY_LOAD_SECONDS
    assert await made.ask("a") == "1.0.0"
    await made.manager.close()


async def test_a_model_nobody_has_and_one_that_goes_while_it_is_waited_for(setup) -> None:
    """A removed model and an unknown one are both NotFoundError."""
    made = setup(a=60, b=60)
    with pytest.raises(NotFoundError, match="there is no model 'a'"):
        await made.ask("a")
    await made.add("a")
    await made.add("b")
    waiting = asyncio.ensure_future(made.ask("a"))
    await asyncio.sleep(0.01)
    await made.manager.deactivate("a")
    with pytest.raises(NotFoundError, match="was removed while a request waited"):
        await waiting
    await made.manager.close()


# --- switching


@pytest.mark.parametrize(
    ("swap", "budget", "most"),
    [("load-first", 100, 80), ("unload-first", 100, 40), ("auto", 100, 80), ("auto", 60, 40), ("auto", 0, 80)],
)
async def test_a_switch_holds_two_copies_or_one(setup, swap, budget, most) -> None:
    """The option decides the order; `auto` decides by the room in the budget."""
    made = setup(a=40, budget=budget, settings={"a": ModelSettings(swap=swap)})
    first = await made.add("a")
    made.footprints.put(onnx_bundle(made.folder / "a-2", name="a", version="2.0.0", tag=2.0).digest, 40 * MIB)
    await made.add("a", 2)
    assert await made.ask("a") == "2.0.0"
    assert made.most == most * MIB
    assert made.manager.get("a").session.digest != first.digest
    await made.manager.close()


async def test_a_switch_prefers_a_short_wait_to_putting_another_model_out(setup) -> None:
    """With `auto` other models stay loaded; with load-first they are unloaded."""
    made = setup(a=40, b=40)
    await made.add("b")
    await made.add("a")
    await made.add("a", 2)
    assert made.loaded == ["a", "b"]
    made = setup(a=40, b=70, budget=150, settings={"a": ModelSettings(swap="load-first")})
    await made.add("b")
    await made.add("a")
    made.footprints.put(onnx_bundle(made.folder / "a-2", name="a", version="2.0.0", tag=2.0).digest, 45 * MIB)
    await made.add("a", 2)
    assert made.loaded == ["a"]


@pytest.mark.parametrize("swap", ["load-first", "unload-first"])
async def test_a_bundle_that_cannot_be_loaded_leaves_the_old_one_answering(setup, swap) -> None:
    """The old bundle answers again after a failed switch, also where it was unloaded first."""
    made = setup(a=40, settings={"a": ModelSettings(swap=swap)})
    await made.add("a")
    made.broken.add("2.0.0")
    with pytest.raises(RuntimeLoadError, match="the disk failed"):
        await made.add("a", 2)
    assert await made.ask("a") == "1.0.0"
    await made.manager.close()


async def test_requests_under_way_finish_on_the_bundle_they_began_with(setup) -> None:
    """The old bundle answers its requests and is then closed; later requests are answered by the new one."""
    made = setup(a=40, settings={"a": ModelSettings(swap="load-first", queue_limit=64)})
    await made.add("a")
    made.manager.get("a").session._inline_bytes = -1
    before = [asyncio.ensure_future(made.ask("a")) for _ in range(3)]
    await asyncio.sleep(0)
    await made.add("a", 2)
    assert await asyncio.gather(*before) == ["1.0.0"] * 3
    assert await made.ask("a") == "2.0.0"
    assert len(made.held) == 1
    await made.manager.close()


async def swap_under_load(made: Setup, swaps: int, clients: int = 8) -> int:
    """Switch `a` between two bundles under load, and count the answers. Any error or foreign answer fails."""
    stop = asyncio.Event()
    answered = 0

    async def client() -> None:
        nonlocal answered
        while not stop.is_set():
            await made.ask("a")
            answered += 1

    running = [asyncio.ensure_future(client()) for _ in range(clients)]
    try:
        for n in range(swaps):
            seen = answered
            await made.add("a", 2 - n % 2)
            while answered < seen + 10:  # noqa: ASYNC110
                await asyncio.sleep(0)
    finally:
        stop.set()
        await asyncio.gather(*running)
    return answered


@pytest.mark.parametrize("swap", ["load-first", "unload-first"])
async def test_switches_under_load_lose_and_mix_nothing(setup, swap) -> None:
    """Every request is answered by the model that its answer names."""
    made = setup(a=40, settings={"a": ModelSettings(swap=swap, queue_limit=64)})
    await made.add("a")
    assert await swap_under_load(made, 20) > 100
    assert made.manager.get("a").counters["swaps"] == 21
    assert len(made.held) == 1
    await made.manager.close()
    assert made.held == []


async def test_switches_without_a_pause_starve_nobody(setup) -> None:
    """Each bundle is loaded for a moment only, and the requests that waited for it are answered by it."""
    made = setup(a=40, settings={"a": ModelSettings(swap="unload-first", queue_limit=64)})
    await made.add("a")
    asked = [asyncio.ensure_future(made.ask("a")) for _ in range(8)]
    for n in range(10):
        await made.add("a", 2 - n % 2)
        asked += [asyncio.ensure_future(made.ask("a")) for _ in range(3)]
    answered = sum(one.done() for one in asked)
    assert answered >= len(asked) - 6
    await asyncio.gather(*asked)
    await made.manager.close()


async def test_a_load_that_takes_long_says_so(setup) -> None:
    """It is reported after a while, repeatedly, and when it is done; a short load is not reported."""
    made, told = setup(a=40), []

    def listen(kind: str, model: str, seconds: float) -> None:
        told.append((kind, model, seconds))

    made.manager.progress.listen(listen, long_seconds=0.02, repeat_seconds=0.02)
    made.loading["a"].clear()
    adding = asyncio.ensure_future(made.add("a"))
    while len(told) < 3:
        await asyncio.sleep(0.01)
        made.now += 5.0
    made.loading["a"].set()
    await adding
    assert [kind for kind, _, _ in told[:3]] == [load_progress.LOADING] * 3
    assert told[-1][:2] == (load_progress.LOADED, "a")
    seconds = [seconds for _, _, seconds in told]
    assert seconds == sorted(seconds)
    told.clear()
    made.manager.progress.listen(listen)
    await made.add("a", 2)
    assert told == []
    await made.manager.close()


async def test_models_come_and_go_under_load_and_the_budget_holds(setup) -> None:
    """Clients of four models of which two fit, with updates between: every answer is right, memory stays bounded."""
    made = setup(a=40, b=40, c=40, d=40, settings={name: ModelSettings(queue_limit=64) for name in "abcd"})
    for name in "abcd":
        for version in (2, 1):
            await made.add(name, version)
    made.most = 0
    stop = asyncio.Event()
    errors: list[EdgekitError] = []

    async def client(name: str) -> None:
        while not stop.is_set():
            try:
                await made.ask(name)
            except EdgekitError as error:
                errors.append(error)
            await asyncio.sleep(0.001)

    async def time() -> None:
        while True:
            await asyncio.sleep(0.005)
            made.now += 1.0

    running = [asyncio.ensure_future(client(name)) for name in "abcdabcd"]
    clock = asyncio.ensure_future(time())
    for n in range(12):
        await made.add("abcd"[n % 4], 1 + n % 2)
    stop.set()
    await asyncio.gather(*running)
    clock.cancel()
    assert errors == []
    assert made.most <= 100 * MIB
    await made.manager.close()
    np.testing.assert_equal(len(made.held), 0)
