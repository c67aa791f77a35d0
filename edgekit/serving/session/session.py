"""One loaded model: its copies behind a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.state import client_inputs, client_outputs
from edgekit.errors import EdgekitError
from edgekit.protocols import Runtime
from edgekit.serving.session import batching
from edgekit.serving.session.calibration import measure_rows, time_golden_row, warm_up
from edgekit.serving.session.instance import Instance, set_result
from edgekit.serving.session.memory_usage import HasMemory
from edgekit.serving.session.processing import SessionProcessing, open_processing
from edgekit.serving.session.queue import (
    MIN_RETRY_SECONDS,
    DeadlineError,
    Job,
    JobQueue,
    OverloadedError,
    admit,
    expected_seconds,
)
from edgekit.serving.session.sequence import Sequence
from edgekit.serving.session.statistics import Statistics
from edgekit.serving.session.stream_table import StreamLimits
from edgekit.serving.session.streams import Calls, open_streams
from edgekit.tensors import Array

__all__ = ["DeadlineError", "Load", "OverloadedError", "Session", "SessionTimes"]

T = TypeVar("T")
Load = Callable[[Manifest, Path], Runtime]

INLINE_SECONDS = 0.0005  # handing a run to a thread and back costs a fifth of this
_SLOW_RUNS, _FAR = 3, 20  # slow runs in a row, or a single run so many times too slow, end runs on the event loop
_TURNS = 8  # runs on the event loop before other coroutines get their turn
_SMOOTHING = 0.1  # weight of the newest run in the mean run time


class SessionTimes(NamedTuple):
    """Time limits of a session, in seconds.

    Attributes:
        inline: A run that is faster than this may run on the event loop.
        calibration: Longest measurement of `Session.calibrate`.
    """

    inline: float = INLINE_SECONDS
    calibration: float = batching.CALIBRATION_SECONDS


class Session:
    """A loaded bundle. Requests run in order of arrival, one at a time on each copy of the model.

    A request runs on the event loop when no other is before it and a request of at least its size took less than
    `SessionTimes.inline` seconds, because two thread switches cost more than such a run. Slow runs end this until a run
    on the thread is fast again, so the event loop is never blocked for long.

    Use `Session.open`. All calls are made on one event loop.

    Attributes:
        manifest, digest, folder: The bundle.
        inputs, outputs: Logical tensors that clients see, without state.
        runtime: Its provider and all its logical tensors may be read at any time; only the session runs it.
        statistics: Counts and times of its requests. Do not change them.
        processing: Steps before and after the model; None where the bundle has none.
        streams: The open streams of a model with state; None for a model without.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        load: Load,
        queue_limit: int,
        instances: int,
        clock: Callable[[], float],
        times: SessionTimes,
        limits: StreamLimits,
    ) -> None:
        self.manifest = manifest
        self.digest = manifest.digest
        self.inputs = client_inputs(manifest.inputs)
        self.outputs = client_outputs(manifest.inputs, manifest.outputs)
        self.folder = folder
        self.statistics = Statistics()
        self._clock, self._times = clock, times
        self._inline_seconds = times.inline
        self._queue_limit = queue_limit
        self._lock = threading.Lock()
        self._pending = 0
        self._mean_seconds = self._deviation_seconds = 0.0
        self._mean_is_rough = True  # no request was measured yet
        self._inline_bytes = -1  # inputs up to this size may run on the event loop; -1 for none
        self._slow_runs = 0  # in a row
        self._may_inline = True  # False for a process of its own, which may hang however fast it was
        self._turns = 0
        self._queue = JobQueue(clock, self._expired, run_seconds=lambda: self._run_seconds)
        self._instances = [
            Instance(f"model-{manifest.name}", self._queue, lambda: load(manifest, folder), self._infer)
            for _ in range(instances)
        ]
        self.runtime: Runtime
        self._runtimes: tuple[Runtime, ...] = ()
        self._batch_input: tuple[str, int] | None = None  # an input, and the axis of it that counts the rows
        self._axes = batching.batch_axes([one.spec for one in (*manifest.inputs, *manifest.outputs)])
        self.processing: SessionProcessing | None = None
        self.streams = open_streams(manifest, limits, Calls(self._run, self._admit, self._expired, clock))

    @classmethod
    async def open(
        cls,
        manifest: Manifest,
        folder: Path,
        load: Load,
        *,
        queue_limit: int,
        instances: int = 1,
        clock: Callable[[], float] = time.monotonic,
        times: SessionTimes | None = None,
        limits: StreamLimits | None = None,
    ) -> Session:
        """Load a bundle's runtime on the thread that will run it.

        Args:
            manifest: Manifest of the bundle.
            folder: Folder of its files.
            load: Loads the runtime; called once for each copy, on its thread.
            queue_limit: Most requests that may wait or run at the same time.
            instances: Copies of the model that run at the same time; each takes the model's memory.
            clock: Monotonic seconds, for deadlines.
            times: Time limits; the defaults where None.
            limits: Limits of the streams of a model with state; the defaults where None.

        Raises:
            Any error of `load`.
            ManifestError, MissingExtraError: the steps before or after the model cannot be done on this device.
        """
        processing = await open_processing(manifest, folder, queue_limit)
        times, limits = times or SessionTimes(), limits or StreamLimits()
        session = cls(manifest, folder, load, queue_limit, instances, clock, times, limits)
        with contextlib.ExitStack() as stack:
            stack.callback(session._queue.close)  # on an error, each thread closes the runtime that it has loaded
            loaded = await asyncio.gather(*(asyncio.wrap_future(one.loaded) for one in session._instances))
            stack.pop_all()
        session.runtime, session._runtimes = loaded[0], tuple(loaded)
        session._batch_input = next(
            (
                (one.spec.name, axis)
                for one in manifest.inputs
                if one.in_artifact and (axis := one.spec.batch_axis) is not None
            ),
            None,
        )
        session._may_inline = not any(isinstance(one, HasMemory) for one in loaded)
        session.processing = processing
        return session

    async def warm(self) -> None:
        """Run one row on every copy, so that no client waits for the runtime's slow first run; see `warm_up`.

        Raises:
            ManifestError: the golden samples are missing or malformed.
            DataError, RuntimeLoadError: as Runtime.run.
        """
        for instance in self._instances:
            run = functools.partial(warm_up, manifest=self.manifest, folder=self.folder)
            await self._submit(Job(run), only=instance)

    async def measure(self) -> None:
        """Measure a run of a warm model, so that the first requests with a deadline are judged by it.

        Raises:
            As `warm`.
        """
        seconds = await self.call(lambda runtime: time_golden_row(runtime, manifest=self.manifest, folder=self.folder))
        if self._mean_is_rough:
            self._mean_seconds = seconds

    async def calibrate(self) -> None:
        """Measure whether joining requests pays, and join them from now on where it does; see `batching`.

        Requests are not joined where that changes answers by more than the golden tolerance. Nothing is measured for a
        model that is so fast that its requests do not wait.

        Raises:
            As `warm`.
        """
        if batching.can_batch(self.manifest):
            times = self._times
            self.batch_rows = await self.call(
                lambda runtime: measure_rows(
                    runtime, self.manifest, self.folder, fast_seconds=times.inline, limit_seconds=times.calibration
                )
            )

    @property
    def batch_rows(self) -> int:
        """Most rows that are joined in one run; 1 for none."""
        return self._queue.max_rows

    @batch_rows.setter
    def batch_rows(self, rows: int) -> None:
        self._queue.max_rows = rows if batching.can_batch(self.manifest) else 1

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return self._pending + (self.streams.waiting if self.streams is not None else 0)

    def memory_bytes(self) -> int | None:
        """Memory of the runtimes' own processes; None where they run in this process. Blocks for a moment."""
        sizes = [one.memory_bytes() for one in self._runtimes if isinstance(one, HasMemory)]
        return sum(sizes) if sizes else None

    @property
    def crashes(self) -> int:
        """Number of crashes of the runtimes' own processes."""
        return sum(getattr(one, "crashes", 0) for one in self._runtimes)

    @property
    def wait_seconds(self) -> float:
        """Expected time until a new request is answered."""
        return expected_seconds(self._pending, self._mean_seconds, len(self._instances))

    def run(
        self, inputs: Mapping[str, Array], *, deadline: float | None = None, place: Sequence | None = None
    ) -> Coroutine[Any, Any, dict[str, Array]]:
        """Run once. A caller that is cancelled while it waits leaves the queue.

        Args:
            inputs: One array per input.
            deadline: In seconds of the session's clock. A run that would probably end later is refused, on arrival or
                while it waits; a run that has begun is finished.
            place: The stream of the request, for a model with state; None for a request of its own. Other models
                ignore it.

        Raises:
            OverloadedError: the queue is full, or too many streams are open.
            DeadlineError: `deadline` passed while the request waited, or would have passed.
            DataError, RuntimeLoadError: as Runtime.run.
            StreamEndedError: the stream has ended, for example by a switch.
        """
        return self._run(inputs, deadline) if self.streams is None else self.streams.run(inputs, deadline, place)

    async def _run(self, inputs: Mapping[str, Array], deadline: float | None) -> dict[str, Array]:
        size = _size(inputs)
        left = self._admit(deadline) if self._pending or deadline is not None else None
        if self._pending or size > self._inline_bytes:
            return await self._run_queued(inputs, deadline, left)
        outputs = self._timed(self.runtime, inputs, time.perf_counter_ns(), size)
        self._turns += 1
        if self._turns % _TURNS == 0 and asyncio.current_task() is not None:  # HTTP connections yield by themselves
            await asyncio.sleep(0)  # a caller that runs requests in a loop would block the event loop
        return outputs

    def _admit(self, deadline: float | None) -> float | None:
        """Refuse a request that would be refused later; the seconds until its deadline."""
        left = None if deadline is None else deadline - self._clock()
        admit(self.manifest.name, waiting=self.pending, limit=self._queue_limit, left=left, expected=self.wait_seconds)
        return left

    async def _run_queued(
        self, inputs: Mapping[str, Array], deadline: float | None, left: float | None
    ) -> dict[str, Array]:
        arrived = time.perf_counter_ns()
        shape, rows = batching.shape_of(self.runtime.inputs, inputs) if self.batch_rows > 1 else (None, 1)
        waits = bool(self._pending)
        job = Job(inputs=inputs, arrived_ns=arrived, deadline=deadline, shape=shape, rows=rows, waits=waits)
        timer = None
        if left is not None:  # a run that begins later than this would end too late
            latest = max(left - self._run_seconds, 0.0) if waits else left
            timer = asyncio.get_running_loop().call_later(latest, self._queue.expire, job)
        try:
            outputs: dict[str, Array] = await self._submit(job)
            return outputs
        finally:
            if timer is not None:
                timer.cancel()

    async def call(self, function: Callable[[Runtime], T]) -> T:
        """Call `function(runtime)` on a thread of the session after earlier requests, without the queue limit."""
        result: T = await self._submit(Job(function))
        return result

    async def close(self) -> None:
        """Finish all earlier requests, then free the model."""
        if self.streams is not None:
            await self.streams.close()
        self._queue.close()
        await asyncio.shield(asyncio.gather(*(asyncio.wrap_future(one.closed) for one in self._instances)))

    async def _submit(self, job: Job, *, only: Instance | None = None) -> Any:
        with self._lock:
            self._pending += 1
        job.future.add_done_callback(self._done)
        self._queue.put(job, only=only)
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            self._queue.forget(job)
            raise

    def _expired(self) -> DeadlineError:
        waiting = self._pending
        retry = max(MIN_RETRY_SECONDS, self.wait_seconds)
        message = f"the deadline passed while the request waited for model {self.manifest.name}"
        return DeadlineError(self.manifest.name, waiting, retry, message, "allow more time")

    def _infer(self, runtime: Runtime, jobs: list[Job]) -> None:
        if len(jobs) > 1 and self._infer_joined(runtime, jobs):
            return
        for job in jobs:
            run = functools.partial(self._timed, runtime, job.inputs, job.arrived_ns, _size(job.inputs))
            set_result(job.future, run)

    def _infer_joined(self, runtime: Runtime, jobs: list[Job]) -> bool:
        """Answer all jobs by one run; False where it failed. Then each runs alone, and only the faulty one fails."""
        start = time.perf_counter_ns()
        try:
            outputs = runtime.run(batching.join([job.inputs for job in jobs], self._axes))
            answers = batching.split(outputs, [job.rows for job in jobs], self._axes)
        except EdgekitError:
            return False
        spent = time.perf_counter_ns() - start
        wall_ms = int(time.time() * 1000)
        with self._lock:
            self._note_mean(spent / 1e9 / len(jobs))
            for job in jobs:
                self.statistics.succeeded(
                    rows=job.rows,
                    queue_ns=start - job.arrived_ns,
                    compute_ns=spent,
                    wall_ms=wall_ms,
                    runs=int(job is jobs[0]),
                )
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)
        return True

    def _timed(self, runtime: Runtime, inputs: Mapping[str, Array], arrived: int, size: int) -> dict[str, Array]:
        """Run once, and count the run and its times; `arrived` in nanoseconds, `size` in bytes."""
        start = time.perf_counter_ns()
        try:
            outputs = runtime.run(inputs)
        except EdgekitError:
            with self._lock:
                self.statistics.failed(time.perf_counter_ns() - arrived)
            raise
        spent = time.perf_counter_ns() - start
        rows = 1 if self._batch_input is None else inputs[self._batch_input[0]].shape[self._batch_input[1]]
        wall_ms = int(time.time() * 1000)
        with self._lock:
            self._note_mean(spent / 1e9)
            self._note_speed(size, spent / 1e9)
            self.statistics.succeeded(rows=rows, queue_ns=start - arrived, compute_ns=spent, wall_ms=wall_ms)
        return outputs

    def _note_mean(self, seconds: float) -> None:
        if self._mean_is_rough:
            self._mean_seconds, self._mean_is_rough = seconds, False
        away = seconds - self._mean_seconds
        self._mean_seconds += away * _SMOOTHING
        self._deviation_seconds += (abs(away) - self._deviation_seconds) * _SMOOTHING

    @property
    def _run_seconds(self) -> float:
        """The time that most runs end in."""
        return self._mean_seconds + 2 * self._deviation_seconds

    def _note_speed(self, size: int, seconds: float) -> None:
        """Decide whether the next requests of up to `size` bytes may run on the event loop."""
        if seconds < self._inline_seconds:
            self._slow_runs = 0
            if size > self._inline_bytes and self._may_inline:
                self._inline_bytes = size
            return
        self._slow_runs += 1
        if self._slow_runs >= _SLOW_RUNS or seconds > _FAR * self._inline_seconds:
            self._inline_bytes = -1

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1


def _size(inputs: Mapping[str, Array]) -> int:
    """Bytes of all inputs."""
    size = 0
    for value in inputs.values():  # twice as fast as sum(), and done for each request
        size += value.nbytes
    return size
