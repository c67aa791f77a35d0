"""A session runs requests in order on threads of its own, and refuses what it cannot answer in time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.manifest import Golden, Manifest
from edgekit.bundle.recipe import Recipe
from edgekit.errors import DataError, ManifestError, RuntimeLoadError
from edgekit.runtimes import open_runtime
from edgekit.serving.session.session import INLINE_SECONDS, DeadlineError, OverloadedError, Session, SessionTimes
from edgekit.tensors import Array
from tests.simulators.small_models import identity_bundle, onnx_bundle

BUNDLE = Manifest("m", "1.0.0", "server", "onnxruntime", (), (), (), Golden(0, (), False), Recipe())


class Tagged:
    """Runtime that answers `tag` after `seconds`, waits for `gate`, and fails when it is used after it was closed."""

    inputs = outputs = ()
    provider = "test"

    def __init__(self, tag: int) -> None:
        self.tag, self.seconds = tag, 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.runs = 0
        self.threads: set[int] = set()
        self.closed = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert not self.closed
        self.threads.add(threading.get_ident())
        self.runs += 1
        self.entered.set()
        assert self.gate.wait(10)
        time.sleep(self.seconds)
        return {"tag": np.array([self.tag])}

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed = True


async def opened(*runtimes: Tagged, limit: int = 100, inline_seconds: float = INLINE_SECONDS) -> Session:
    left = list(runtimes)
    return await Session.open(
        BUNDLE,
        Path(),
        lambda manifest, folder: left.pop(0),
        queue_limit=limit,
        instances=len(runtimes),
        times=SessionTimes(inline=inline_seconds),
    )


async def until_entered(runtime: Tagged) -> None:
    await asyncio.to_thread(runtime.entered.wait, 10)


async def test_the_loop_is_free_while_a_model_runs() -> None:
    """Other coroutines go on while the runtime is busy, and everything it does is on one thread."""
    runtime = Tagged(1)
    session = await opened(runtime)
    runtime.gate.clear()
    asked = asyncio.ensure_future(session.run({}))
    await until_entered(runtime)
    await asyncio.sleep(0)
    assert not asked.done()
    runtime.gate.set()
    assert (await asked)["tag"] == [1]
    await session.close()
    assert len(runtime.threads) == 1
    assert threading.get_ident() not in runtime.threads


async def test_a_fast_model_is_not_sent_to_the_thread_and_back() -> None:
    """Known to be fast and alone, a request runs at once; one that is larger, second, or after a slow one does not."""
    runtime = Tagged(1)
    session = await opened(runtime, inline_seconds=0.1)
    small, large = {"x": np.zeros(4)}, {"x": np.zeros(5)}

    async def where(inputs: dict[str, Array]) -> set[int]:
        runtime.threads.clear()
        await session.run(inputs)
        return set(runtime.threads)

    (worker,) = await where(small)
    assert worker != threading.get_ident()
    assert await where(small) == {threading.get_ident()}
    assert await where(large) == {worker}
    assert await where(large) == {threading.get_ident()}
    runtime.gate.clear()
    waiting = asyncio.ensure_future(session.call(lambda runtime: runtime.run({})))
    await asyncio.sleep(0)
    asked = asyncio.ensure_future(session.run(small))
    await asyncio.sleep(0)
    assert not asked.done()
    runtime.gate.set()
    await asyncio.gather(waiting, asked)
    runtime.seconds = 2.1  # more than 20 times too slow
    assert await where(small) == {threading.get_ident()}
    runtime.seconds = 0.0
    assert await where(small) == {worker}
    await session.close()


async def test_a_caller_that_asks_in_a_loop_does_not_keep_others_out() -> None:
    """Even where every answer is there at once, other coroutines get their turn."""
    session = await opened(Tagged(1), inline_seconds=60.0)
    ended = asyncio.Event()
    asyncio.get_running_loop().call_soon(ended.set)
    for _ in range(1000):
        await session.run({})
        if ended.is_set():
            break
    asyncio.get_running_loop().call_later(0, ended.clear)
    for _ in range(1000):
        await session.run({})
        if not ended.is_set():
            break
    assert not ended.is_set()
    await session.close()


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    """Requests over the limit are refused; accepted ones are answered."""
    runtime = Tagged(1)
    session = await opened(runtime, limit=3)
    runtime.gate.clear()
    asked = [asyncio.ensure_future(session.run({})) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="m has 3 requests waiting") as caught:
        await session.run({})
    assert caught.value.retry_after_seconds >= 1
    runtime.gate.set()
    assert len(await asyncio.gather(*asked)) == 3
    assert session.pending == 0
    await session.run({})
    await session.close()


async def test_a_caller_that_gives_up_leaves_the_queue() -> None:
    """A cancelled request that had not begun is never run."""
    runtime = Tagged(1)
    session = await opened(runtime)
    runtime.gate.clear()
    first = asyncio.ensure_future(session.run({}))
    await until_entered(runtime)
    second = asyncio.ensure_future(session.run({}))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    runtime.gate.set()
    await first
    await session.close()
    assert runtime.runs == 1
    assert session.pending == 0


async def test_a_request_fails_at_its_deadline_and_not_when_its_turn_comes() -> None:
    """During a long run, waiting requests fail at their deadline; the running one is finished."""
    runtime = Tagged(1)
    session = await opened(runtime)
    runtime.gate.clear()
    first = asyncio.ensure_future(session.run({}, deadline=time.monotonic() + 0.01))
    await until_entered(runtime)
    with pytest.raises(DeadlineError, match="the deadline passed while the request waited for model m"):
        await session.run({}, deadline=time.monotonic() + 0.02)
    with pytest.raises(DeadlineError, match="passed before the request reached"):
        await session.run({}, deadline=time.monotonic() - 1)
    assert session.pending == 1
    runtime.gate.set()
    assert (await first)["tag"] == [1]
    await session.close()
    assert runtime.runs == 1


async def test_a_deadline_that_cannot_be_kept_is_refused_at_once() -> None:
    """The measured time of a run decides, before the deadline has passed."""
    runtime = Tagged(1)
    session = await opened(runtime)
    session._mean_seconds = 1000.0
    runtime.gate.clear()
    first = asyncio.ensure_future(session.run({}))
    await until_entered(runtime)
    with pytest.raises(DeadlineError, match="would answer in about 2000000 ms") as caught:
        await session.run({}, deadline=time.monotonic() + 600)
    assert caught.value.retry_after_seconds == pytest.approx(2000)
    runtime.gate.set()
    await first
    await session.close()


async def test_copies_of_a_model_run_side_by_side() -> None:
    """Two copies answer two requests at a time, each on its thread; all are warmed, and all are closed."""
    runtimes = Tagged(1), Tagged(2)
    session = await opened(*runtimes)
    for runtime in runtimes:
        runtime.gate.clear()
    asked = [asyncio.ensure_future(session.run({})) for _ in range(2)]
    for runtime in runtimes:
        await until_entered(runtime)
    for runtime in runtimes:
        runtime.gate.set()
    assert {answer["tag"][0] for answer in await asyncio.gather(*asked)} == {1, 2}
    await session.close()
    assert all(runtime.closed for runtime in runtimes)
    assert len(runtimes[0].threads | runtimes[1].threads) == 2


async def test_every_copy_is_warmed(tmp_path: Path) -> None:
    """Every copy makes its first run before a client's request."""
    made: list[Counted] = []

    class Counted:
        def __init__(self, manifest: Manifest, folder: Path) -> None:
            self._real, self.runs = open_runtime(manifest, folder), 0
            self.inputs, self.outputs, self.provider = self._real.inputs, self._real.outputs, self._real.provider
            self.close = self._real.close
            made.append(self)

        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            self.runs += 1
            return self._real.run(inputs)

    session = await Session.open(onnx_bundle(tmp_path), tmp_path, Counted, queue_limit=1, instances=3)
    await session.warm()
    assert [one.runs for one in made] == [1, 1, 1]
    await session.close()


async def test_a_copy_that_cannot_be_loaded_frees_the_others() -> None:
    """When one copy cannot be loaded, the session fails and the other copies are closed."""
    good, left = Tagged(1), [1, 2]

    def load(*_: Any) -> Tagged:
        if left.pop() == 1:
            raise RuntimeLoadError("no second")
        return good

    with pytest.raises(RuntimeLoadError, match="no second"):
        await Session.open(BUNDLE, Path(), load, queue_limit=1, instances=2)
    for _ in range(200):
        if good.closed:
            break
        await asyncio.sleep(0.01)
    assert good.closed


async def test_a_model_that_cannot_be_loaded_leaves_no_thread() -> None:
    """The error of the load is raised unchanged."""

    def broken(*_: Any) -> Tagged:
        raise RuntimeLoadError("no model")

    before = threading.active_count()
    with pytest.raises(RuntimeLoadError, match="no model"):
        await Session.open(BUNDLE, Path(), broken, queue_limit=1)
    for _ in range(100):
        if threading.active_count() <= before:
            break
        await asyncio.sleep(0.01)
    assert threading.active_count() <= before


async def test_a_session_of_a_model_with_indexes_is_warmed_by_a_real_row(tmp_path: Path) -> None:
    """Zeros could be wrong places; a bundle without golden samples is refused with a message."""
    manifest = identity_bundle(tmp_path, name="places", dtypes=("int64",))
    session = await Session.open(manifest, tmp_path, open_runtime, queue_limit=1)
    await session.warm()
    (tmp_path / "golden.npz").unlink()
    with pytest.raises(ManifestError, match="golden samples cannot be read"):
        await session.warm()
    await session.close()


async def test_a_session_of_a_model_of_numbers_is_warmed_by_zeros(tmp_path: Path) -> None:
    """No golden samples are read: that would take longer than the run of a small model, at each start of the agent."""
    manifest = onnx_bundle(tmp_path)
    session = await Session.open(manifest, tmp_path, open_runtime, queue_limit=1)
    (tmp_path / "golden.npz").unlink()
    await session.warm()
    await session.close()


async def test_a_session_knows_what_it_has_done(tmp_path: Path) -> None:
    """Rows, runs, waiting and failures add up; a request that never ran is not counted."""
    session = await Session.open(onnx_bundle(tmp_path, batch=None), tmp_path, open_runtime, queue_limit=1)
    assert session.statistics.last_ms == 0
    for rows in (1, 4):
        await session.run({"x": np.zeros((rows, 3), np.float32)})
    with pytest.raises(DataError):
        await session.run({"x": np.zeros((1, 4), np.float32)})
    found = session.statistics
    assert (found.rows, found.runs, found.success_count, found.fail_count) == (5, 2, 2, 1)
    assert found.success_ns == found.queue_ns + found.compute_ns
    assert min(found.queue_ns, found.compute_ns, found.fail_ns, found.last_ms) > 0
    await session.close()
