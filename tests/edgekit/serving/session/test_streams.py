"""Requests of a model with state: order within a stream, separate streams, failures, cancellation, switches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.manifest import Manifest
from edgekit.errors import DataError, RuntimeLoadError
from edgekit.runtimes import open_runtime
from edgekit.serving.models.manager import ModelManager
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session import streams
from edgekit.serving.session.sequence import Sequence
from edgekit.serving.session.session import DeadlineError, OverloadedError, Session
from edgekit.serving.session.stream_table import StreamEndedError, StreamLimits
from edgekit.tensors import Array
from tests.simulators.streaming_models import expected, steps, streaming_bundle


class Gated:
    """The real runtime, which waits for `gate`, and fails while `fails`."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._real = open_runtime(manifest, folder)
        self.inputs, self.outputs, self.provider = self._real.inputs, self._real.outputs, self._real.provider
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.fails = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.entered.set()
        assert self.gate.wait(10)
        if self.fails:
            raise RuntimeLoadError("the runtime failed")
        return self._real.run(inputs)

    def close(self) -> None:
        self._real.close()


class Moved:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def opened(
    folder: Path, *, instances: int = 1, limit: int = 64, streams: int = 64, clock: Moved | None = None
) -> AsyncIterator[tuple[Session, list[Gated]]]:
    manifest, runtimes = streaming_bundle(folder), []

    def load(manifest: Manifest, folder: Path) -> Gated:
        runtimes.append(Gated(manifest, folder))
        return runtimes[-1]

    session = await Session.open(
        manifest,
        folder,
        load,
        queue_limit=limit,
        instances=instances,
        clock=clock or Moved(),
        limits=StreamLimits(streams, 60.0),
    )
    try:
        await session.warm()
        yield session, runtimes
    finally:
        for one in runtimes:
            one.gate.set()
        await session.close()


async def asked(session: Session, x: Array, key: int | str, *, start: bool = False, end: bool = False) -> Array:
    return (await session.run({"x": x}, place=Sequence(key, start, end)))["y"]


async def test_streams_are_equal_to_the_float_model_step_by_step(tmp_path: Path) -> None:
    """Several streams at once over two copies of the model, each with requests that are all sent at once."""
    async with opened(tmp_path, instances=2) as (session, _):
        assert [spec.name for spec in (*session.inputs, *session.outputs)] == ["x", "y"]
        inputs = {key: steps(12, seed) for seed, key in enumerate([1, 2, "three"])}
        sent = {
            key: [asyncio.create_task(asked(session, x[i], key, start=i == 0, end=i == 11)) for i in range(12)]
            for key, x in inputs.items()
        }
        for key, tasks in sent.items():
            np.testing.assert_allclose(np.stack(await asyncio.gather(*tasks)), expected(inputs[key]), atol=1e-5)
        assert len(session.streams or ()) == 0


async def test_requests_without_a_stream_start_from_zero(tmp_path: Path) -> None:
    """They may have any number of rows, keep nothing, and are not joined with others."""
    async with opened(tmp_path) as (session, _):
        x = steps(1)[0]
        for _ in range(2):
            answer = await session.run({"x": np.repeat(x, 3, axis=0)})
            assert list(answer) == ["y"]
            np.testing.assert_allclose(answer["y"], np.repeat(expected(x[None])[0], 3, axis=0), atol=1e-5)
        session.batch_rows = 8
        assert session.batch_rows == 1
        assert len(session.streams or ()) == 0


async def test_the_state_of_many_small_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small request must not make the device take memory for a huge state."""
    monkeypatch.setattr(streams, "MAX_STATE_BYTES", 64)
    async with opened(tmp_path) as (session, _):
        x = np.zeros((5, 3), np.float32)
        assert len((await session.run({"x": x[:4]}))["y"]) == 4
        with pytest.raises(DataError, match="5 rows, and their state would take 80 bytes, the limit is 64") as caught:
            await session.run({"x": x})
        assert "at most 4 rows" in caught.value.advice


async def test_a_request_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    """Unknown streams, several rows, and wrong inputs are errors; the stream then goes on where it was."""
    async with opened(tmp_path) as (session, runtimes):
        x = steps(2)
        with pytest.raises(DataError, match="stream 5 of model ear is not open"):
            await asked(session, x[0], 5)
        await asked(session, x[0], 5, start=True)
        with pytest.raises(DataError, match="has 2 rows, a request of a stream has 1"):
            await asked(session, np.repeat(x[0], 2, axis=0), 5)
        with pytest.raises(DataError, match="shape"):
            await asked(session, x[0][:, :2], 5)
        with pytest.raises(DataError, match="input 'h' is unknown"):
            await session.run({"x": x[0], "h": np.zeros((1, 1, 4), np.float32)}, place=Sequence(5))
        runtimes[0].fails = True
        with pytest.raises(RuntimeLoadError):
            await asked(session, x[1], 5)
        with pytest.raises(RuntimeLoadError):
            await asked(session, x[1], 6, start=True)
        runtimes[0].fails = False
        with pytest.raises(DataError, match="stream 6 of model ear is not open"):
            await asked(session, x[1], 6)
        np.testing.assert_allclose(await asked(session, x[1], 5), expected(x)[1], atol=1e-5)


async def test_a_client_that_leaves_does_not_block_its_stream_or_move_its_state(tmp_path: Path) -> None:
    """A running and a waiting request are cancelled; a request after them is answered as if they had not been sent."""
    async with opened(tmp_path) as (session, (runtime,)):
        x = steps(4)
        await asked(session, x[0], 1, start=True)
        await session.call(lambda _: None)
        runtime.gate.clear()
        session._inline_bytes = -1  # as for a model that is not fast
        tasks = [asyncio.create_task(asked(session, x[i], 1)) for i in (1, 2, 3)]
        await asyncio.sleep(0.01)
        assert session.pending == 3
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.sleep(0)
        runtime.gate.set()
        np.testing.assert_allclose(await tasks[2], expected(x[[0, 3]])[1], atol=1e-5)
        assert session.pending == 0


async def test_waiting_requests_are_bounded_and_have_deadlines(tmp_path: Path) -> None:
    """A request that waits for its stream counts for the queue limit, and fails at its deadline."""
    clock = Moved()
    async with opened(tmp_path, limit=2, clock=clock) as (session, (runtime,)):
        x = steps(3)
        session._inline_bytes = -1
        runtime.gate.clear()
        first = asyncio.create_task(asked(session, x[0], 1, start=True))
        await asyncio.sleep(0.01)
        session._mean_seconds = 0.0
        with pytest.raises(DeadlineError):
            await session.run({"x": x[1]}, place=Sequence(1), deadline=clock.now + 0.02)
        second = asyncio.create_task(asked(session, x[1], 1))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError, match="2 requests waiting"):
            await asked(session, x[2], 1)
        runtime.gate.set()
        np.testing.assert_allclose(np.stack([await first, await second]), expected(x[:2]), atol=1e-5)


async def test_too_many_and_idle_streams(tmp_path: Path) -> None:
    """One more than the limit is refused until a stream was idle for its time; then its client is told."""
    clock = Moved()
    async with opened(tmp_path, streams=2, clock=clock) as (session, _):
        x = steps(1)[0]
        await asked(session, x, 1, start=True)
        clock.now += 30
        await asked(session, x, 2, start=True)
        with pytest.raises(OverloadedError, match="2 open streams"):
            await asked(session, x, 3, start=True)
        clock.now += 30
        await asked(session, x, 3, start=True)
        with pytest.raises(StreamEndedError, match="no request for 60 s"):
            await asked(session, x, 1)
        assert len(session.streams or ()) == 2


async def test_idle_streams_are_freed_while_no_request_comes(tmp_path: Path) -> None:
    """A timer ends them, so that their memory is not held until the next request."""
    manifest = streaming_bundle(tmp_path)
    session = await Session.open(manifest, tmp_path, open_runtime, queue_limit=4, limits=StreamLimits(4, 0.06))
    await asked(session, steps(1)[0], 1, start=True)
    assert session.streams is not None
    for _ in range(100):
        if not len(session.streams._table):
            break
        await asyncio.sleep(0.02)
    assert not len(session.streams._table)
    await session.close()


async def test_a_switch_answers_what_waits_and_ends_the_streams(tmp_path: Path) -> None:
    """Accepted requests are answered by the old bundle; the next request of each stream gets the reason."""
    old, new = streaming_bundle(tmp_path / "1"), streaming_bundle(tmp_path / "2", version="1.1.0", gain=2.0)
    runtimes: list[Gated] = []

    def load(manifest: Manifest, folder: Path) -> Gated:
        runtimes.append(Gated(manifest, folder))
        return runtimes[-1]

    manager = ModelManager(load, lambda name: ModelOptions(swap="load-first"))
    await manager.activate("ear", old, tmp_path / "1")
    x = steps(3)
    session = await manager.acquire("ear")
    session._inline_bytes = -1
    runtimes[0].gate.clear()
    waiting = [asyncio.create_task(asked(session, x[i], 1, start=i == 0)) for i in range(3)]
    await asyncio.sleep(0.01)
    switch = asyncio.create_task(manager.activate("ear", new, tmp_path / "2"))
    while await manager.acquire("ear") is session:  # noqa: ASYNC110 - the switch has no event
        await asyncio.sleep(0.01)
    latest = await manager.acquire("ear")
    with pytest.raises(StreamEndedError, match=r"the model was switched from version 1\.0\.0 to 1\.1\.0"):
        await asked(latest, x[0], 1)
    runtimes[0].gate.set()
    np.testing.assert_allclose(np.stack(await asyncio.gather(*waiting)), expected(x), atol=1e-5)
    await switch
    np.testing.assert_allclose(await asked(latest, x[0], 1, start=True), expected(x[:1], 2.0)[0], atol=1e-5)
    model = manager.get("ear")
    assert model is not None
    async with model.switching:
        await manager._unload(model)
    reloaded = await manager.acquire("ear")
    with pytest.raises(StreamEndedError, match="the model was unloaded and loaded again"):
        await asked(reloaded, x[1], 1)
    await manager.close()
