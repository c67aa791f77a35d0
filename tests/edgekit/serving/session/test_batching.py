"""Waiting requests are joined where that pays, and each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.manifest import Manifest
from edgekit.errors import ArenaFullError, DataError
from edgekit.runtimes import open_runtime
from edgekit.serving.session.batching import batch_axes, best_rows, can_batch, join, shape_of, split
from edgekit.serving.session.session import Session, SessionTimes
from edgekit.tensors import Array, DType, TensorSpec
from tests.simulators.small_models import litert_bundle, onnx_bundle, softmax

X = TensorSpec("x", DType.FLOAT32, (None, 3))


AXES: dict[str, int | None] = {"x": 0}


def test_rows_are_joined_along_the_batch_of_each_tensor() -> None:
    """A batch in the middle is joined there; a scalar is sent once, and requests with other scalars are not joined."""
    specs = [TensorSpec("h", DType.FLOAT32, (2, None, 3)), TensorSpec("sr", DType.INT64, ())]
    axes = batch_axes(specs)
    requests = [{"h": np.random.default_rng(n).random((2, n, 3), np.float32), "sr": np.array(16000)} for n in (1, 2, 3)]
    whole = join(requests, axes)
    assert whole["h"].shape == (2, 6, 3)
    assert whole["sr"] == 16000
    for one, found in zip(requests, split({"h": whole["h"]}, [1, 2, 3], axes), strict=True):
        np.testing.assert_array_equal(found["h"], one["h"])
    assert [shape_of(specs, one)[1] for one in requests] == [1, 2, 3]
    other = {**requests[0], "sr": np.array(8000)}
    assert shape_of(specs, requests[1])[0] == shape_of(specs, requests[2])[0] != shape_of(specs, other)[0]


def rows_of(*counts: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(n, 3)).astype(np.float32)} for n in counts]


def test_only_artifacts_that_take_any_number_of_rows_gain(tmp_path: Path) -> None:
    """A batch of 1 runs row by row, joined or not."""
    assert can_batch(onnx_bundle(tmp_path / "free", batch=None))
    assert not can_batch(onnx_bundle(tmp_path / "one"))
    assert not can_batch(litert_bundle(tmp_path / "lite"))


def test_what_does_not_fit_the_model_runs_alone() -> None:
    """A wrong request runs alone, so that only it fails; requests of other inner shapes are not joined."""
    assert shape_of([X], {"x": np.zeros((2, 3), np.float32)}) == ((("x", (3,)),), 2)
    for bad in ({"x": np.zeros((2, 4), np.float32)}, {"x": np.zeros((2, 3))}, {}, {"x": np.zeros((0, 3), np.float32)}):
        assert shape_of([X], bad) == (None, 1)
    free = TensorSpec("x", DType.FLOAT32, (None, None))
    shapes = {shape_of([free], {"x": np.zeros((1, n), np.float32)})[0] for n in (2, 3)}
    assert len(shapes) == 2


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_what_was_joined_comes_apart_as_it_was(counts: list[int]) -> None:
    """Joined requests are split into the same rows again, whatever their numbers."""
    requests = rows_of(*counts)
    for one, found in zip(requests, split(join(requests, AXES), counts, AXES), strict=True):
        np.testing.assert_array_equal(found["x"], one["x"])
        assert found["x"].base is None


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0}, 1),  # nothing is gained
        ({1: 1.0, 2: 1.9, 4: 3.3}, 1),  # too little
        ({1: 1.0, 2: 1.1, 4: 1.3, 8: 1.6}, 8),
        ({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.5, 16: 5.0}, 4),  # as good as the larger
        ({1: 1.0}, 1),
    ],
)
def test_as_many_rows_are_joined_as_pay(seconds: dict[int, float], rows: int) -> None:
    """The best rate of rows decides, with the smallest number that comes near it."""
    assert best_rows(seconds) == rows


class Slow:
    """A real runtime with a time per run and per row; it notes the rows of each run and can falsify joined answers."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._real = open_runtime(manifest, folder)
        self.inputs, self.outputs, self.provider = self._real.inputs, self._real.outputs, self._real.provider
        self.run_seconds = self.row_seconds = 0.0
        self.spoiled = 0.0
        self.max_rows = 10_000
        self.runs: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.close = self._real.close

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self.gate.wait(10)
        rows = len(inputs["x"])
        self.runs.append(rows)
        if rows > self.max_rows:
            raise ArenaFullError(f"{rows} rows do not fit")
        if np.isnan(inputs["x"]).any():
            raise DataError("x: holds NaN")
        time.sleep(self.run_seconds + rows * self.row_seconds)
        found = self._real.run(inputs)
        return {**found, "scores": found["scores"] + np.float32(self.spoiled * (rows > 1))}


async def opened(folder: Path, *, times: SessionTimes | None = None, **changes: float) -> tuple[Session, Slow]:
    made: list[Slow] = []

    def load(manifest: Manifest, folder: Path) -> Slow:
        made.append(Slow(manifest, folder))
        for name, value in changes.items():
            setattr(made[-1], name, value)
        return made[-1]

    session = await Session.open(onnx_bundle(folder, batch=None), folder, load, queue_limit=64, times=times)
    return session, made[0]


async def ask_together(session: Session, runtime: Slow, requests: list[dict[str, Array]]) -> list[object]:
    """Send a request that occupies the model, then all others before it is done."""
    runtime.gate.clear()
    first = asyncio.ensure_future(session.call(lambda runtime: runtime.run(rows_of(1)[0])))
    asked = [asyncio.ensure_future(session.run(one)) for one in requests]
    await asyncio.sleep(0)
    runtime.gate.set()
    await first
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_waiting_requests_are_joined_and_each_gets_its_answer(tmp_path: Path) -> None:
    """Requests are joined up to the limit of rows; statistics count requests, rows and runs."""
    session, runtime = await opened(tmp_path)
    session.batch_rows = 4
    requests = rows_of(1, 2, 1, 3, 1, 9)
    found = await ask_together(session, runtime, requests)
    for one, answer in zip(requests, found, strict=True):
        np.testing.assert_allclose(answer["scores"], softmax(one["x"]), atol=1e-6)
    assert runtime.runs == [1, 4, 4, 9]
    counted = session.statistics
    assert (counted.success_count, counted.rows, counted.runs) == (6, 17, 3)
    assert counted.success_ns == counted.queue_ns + counted.compute_ns
    await session.close()


async def test_one_bad_request_fails_alone(tmp_path: Path) -> None:
    """The requests that were joined with a faulty one are answered."""
    session, runtime = await opened(tmp_path)
    session.batch_rows = 8
    requests = rows_of(1, 1, 1)
    requests[1]["x"][0, 0] = np.nan
    wrong = {"x": np.zeros((1, 4), np.float32)}
    first, second, third, fourth = await ask_together(session, runtime, [*requests, wrong])
    np.testing.assert_allclose(first["scores"], softmax(requests[0]["x"]), atol=1e-6)
    np.testing.assert_allclose(third["scores"], softmax(requests[2]["x"]), atol=1e-6)
    assert isinstance(second, DataError)
    assert isinstance(fourth, DataError)
    assert (session.statistics.success_count, session.statistics.fail_count) == (2, 2)
    await session.close()


async def test_nothing_is_joined_by_default_and_nobody_waits_for_others(tmp_path: Path) -> None:
    """Without a setting or a measured gain requests run one by one."""
    session, runtime = await opened(tmp_path)
    await ask_together(session, runtime, rows_of(1, 1, 1))
    assert runtime.runs == [1, 1, 1, 1]
    await session.close()


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({"run_seconds": 0.01}, 4, 16),  # a row more costs nothing
        ({"row_seconds": 0.01}, 1, 1),  # each row costs the same
        ({"run_seconds": 0.01, "spoiled": 0.01}, 1, 1),  # joined answers are others
        ({"run_seconds": 0.01, "max_rows": 4}, 2, 4),  # more do not fit into the memory of a run
        ({}, 1, 1),  # too fast for any queue
    ],
)
async def test_a_short_measurement_decides(tmp_path: Path, changes, least, most) -> None:
    """The time of runs with more and more rows decides, and whether their answers are the same."""
    session, _ = await opened(tmp_path, times=SessionTimes(inline=0.005, calibration=1.0), **changes)
    await session.calibrate()
    assert least <= session.batch_rows <= most
    await session.close()


async def test_a_batch_of_one_is_never_joined(tmp_path: Path) -> None:
    """An artifact with a batch of 1 runs row by row, whatever the option says."""
    session = await Session.open(onnx_bundle(tmp_path), tmp_path, open_runtime, queue_limit=8)
    session.batch_rows = 8
    assert session.batch_rows == 1
    await session.calibrate()
    assert session.batch_rows == 1
    await session.close()
