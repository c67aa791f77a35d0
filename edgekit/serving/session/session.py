"""One model in use: its copies behind a bounded queue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from edgekit.bundle.golden import read_golden
from edgekit.bundle.manifest import ROLE_GOLDEN, Manifest
from edgekit.errors import ArenaFullError, EdgekitError, ManifestError
from edgekit.protocols import Runtime
from edgekit.sealing.opening import read_file
from edgekit.serving.session import batching
from edgekit.serving.session.instance import Instance
from edgekit.serving.session.memory_usage import TellsMemory
from edgekit.serving.session.processing import SessionProcessing, open_processing
from edgekit.serving.session.queue import (
    LEAST_RETRY_SECONDS,
    DeadlineError,
    Job,
    JobQueue,
    OverloadedError,
    admit,
    expected_seconds,
)
from edgekit.serving.session.statistics import Statistics
from edgekit.tensors import Array

__all__ = ["DeadlineError", "Load", "OverloadedError", "Session"]

T = TypeVar("T")
Load = Callable[[Manifest, Path], Runtime]

INLINE_SECONDS = 0.0005  # handing a run to a thread and back costs a fifth of this
_SLOW_RUNS, _FAR = 3, 20  # a single slow run is the machine's doing, unless it is that much slower
_TURNS = 8  # runs on the event loop before others get their turn
_SMOOTHING = 0.1  # weight of the newest run in the mean time of one


class Session:
    """A loaded bundle. Requests run in the order in which they came, one at a time on each copy of the model.

    A request no larger than one that took less than INLINE_SECONDS runs on the event loop when nothing is before it,
    because two switches between threads cost more than such a model. Some that take longer end that until a run on the
    thread was as fast again, so the loop never waits long.

    Use `Session.open`. All calls are made on one event loop.

    Attributes:
        manifest, digest, folder: The bundle.
        runtime: Its logical tensors and provider may be read at any time; only the session runs it.
        statistics: What it has done; to be read only.
        processing: What it does before and after the model; None where nothing.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, load: Load, queue_limit: int, instances: int, clock: Callable[[], float]
    ) -> None:
        self.manifest = manifest
        self.digest = manifest.digest
        self.folder = folder
        self.statistics = Statistics()
        self._clock = clock
        self._queue_limit = queue_limit
        self._lock = threading.Lock()
        self._pending = 0
        self._mean_seconds = 0.0
        self._inline_bytes = -1  # inputs up to this size are known to be fast; none are
        self._slow_runs = 0  # in a row
        self._may_inline = True  # a process of its own may hang however fast it was
        self._turns = 0
        self._queue = JobQueue(clock, self._expired)
        self._instances = [
            Instance(f"model-{manifest.name}", self._queue, lambda: load(manifest, folder), self._infer)
            for _ in range(instances)
        ]
        self.runtime: Runtime
        self._runtimes: tuple[Runtime, ...] = ()
        self._batch_input: str | None = None  # one whose length is the number of rows
        self.processing: SessionProcessing | None = None

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
    ) -> Session:
        """Load a bundle's runtime on the thread that will run it.

        Args:
            manifest: Of the bundle.
            folder: Where its files are.
            load: Loads the runtime; called once for each copy, on its thread.
            queue_limit: Most requests that may wait or run at a time.
            instances: Copies of the model, which run side by side; each costs its memory.
            clock: Monotonic seconds, for deadlines.

        Raises:
            Whatever `load` raises.
            ManifestError, MissingExtraError: what comes before or after the model cannot be done here.
        """
        processing = await open_processing(manifest, folder, queue_limit)
        made = cls(manifest, folder, load, queue_limit, instances, clock)
        try:
            loaded = await asyncio.gather(*(asyncio.wrap_future(one.loaded) for one in made._instances))
        except BaseException:
            made._queue.close()  # whatever was loaded all the same is closed by its thread
            raise
        made.runtime, made._runtimes = loaded[0], tuple(loaded)
        made._batch_input = next((spec.name for spec in loaded[0].inputs if spec.shape[:1] == (None,)), None)
        made._may_inline = not any(isinstance(one, TellsMemory) for one in loaded)
        made.processing = processing
        return made

    async def warm(self) -> None:
        """Run the first golden row on every copy, so that no client pays for the runtime's first run.

        Raises:
            ManifestError: the golden samples are missing or malformed.
            DataError, RuntimeLoadError: as Runtime.run.
        """
        for instance in self._instances:
            await self._ask(Job(self._run_golden_row), only=instance)

    async def calibrate(self) -> None:
        """Measure whether joining requests pays, and do so from now on if it does; see `batching`.

        It does not where answers would change by more than the golden tolerance, and is not measured for a model so
        fast that no request waits for another.

        Raises:
            As `warm`.
        """
        if batching.can_batch(self.manifest):
            self.batch_rows = await self.call(self._measure_rows)

    @property
    def batch_rows(self) -> int:
        """Rows that are joined in one run at most; 1 for none."""
        return self._queue.most_rows

    @batch_rows.setter
    def batch_rows(self, rows: int) -> None:
        self._queue.most_rows = rows if batching.can_batch(self.manifest) else 1

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return self._pending

    def memory_bytes(self) -> int | None:
        """What runtimes with a process of their own hold; None where they are part of this one. Blocks for a moment."""
        told = [one.memory_bytes() for one in self._runtimes if isinstance(one, TellsMemory)]
        return sum(told) if told else None

    @property
    def crashes(self) -> int:
        """How often a process of its own was lost."""
        return sum(getattr(one, "crashes", 0) for one in self._runtimes)

    @property
    def wait_seconds(self) -> float:
        """How long a request that came now would likely take."""
        return expected_seconds(self._pending, self._mean_seconds, len(self._instances))

    async def run(self, inputs: Mapping[str, Array], *, deadline: float | None = None) -> dict[str, Array]:
        """Run once. A caller that is cancelled while it waits leaves the queue.

        Args:
            inputs: One array per input.
            deadline: In seconds of the session's clock. A run that would begin later, or would likely end later, is
                refused; one that has begun is finished.

        Raises:
            OverloadedError: the queue is full.
            DeadlineError: `deadline` passed while the request waited, or would have.
            DataError, RuntimeLoadError: as Runtime.run.
        """
        size = _size(inputs)
        left = None if deadline is None else deadline - self._clock()
        if self._pending or left is not None:
            admit(
                self.manifest.name,
                waiting=self._pending,
                limit=self._queue_limit,
                left=left,
                expected=self.wait_seconds,
            )
        if self._pending or size > self._inline_bytes:
            return await self._run_queued(inputs, deadline, left)
        found = self._timed(self.runtime, inputs, time.perf_counter_ns(), size)
        self._turns += 1
        if self._turns % _TURNS == 0 and asyncio.current_task() is not None:  # a connection gives way by itself
            await asyncio.sleep(0)  # a caller that asks in a loop would keep the event loop from everyone else
        return found

    async def _run_queued(
        self, inputs: Mapping[str, Array], deadline: float | None, left: float | None
    ) -> dict[str, Array]:
        asked = time.perf_counter_ns()
        shape, rows = batching.shape_of(self.runtime.inputs, inputs) if self.batch_rows > 1 else (None, 1)
        job = Job(inputs=inputs, asked_ns=asked, deadline=deadline, shape=shape, rows=rows)
        timer = None
        if left is not None:
            timer = asyncio.get_running_loop().call_later(left, self._queue.expire, job)
        try:
            answer: dict[str, Array] = await self._ask(job)
            return answer
        finally:
            if timer is not None:
                timer.cancel()

    async def call(self, function: Callable[[Runtime], T]) -> T:
        """Call `function(runtime)` on a thread of the session, after what came before it; not bound by the limit."""
        found: T = await self._ask(Job(function))
        return found

    async def close(self) -> None:
        """Let everything that was asked before finish, then free the model."""
        self._queue.close()
        await asyncio.shield(asyncio.gather(*(asyncio.wrap_future(one.closed) for one in self._instances)))

    async def _ask(self, job: Job, *, only: Instance | None = None) -> Any:
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
        retry = max(LEAST_RETRY_SECONDS, self.wait_seconds)
        message = f"the deadline passed while the request waited for model {self.manifest.name}"
        return DeadlineError(self.manifest.name, waiting, retry, message, "allow more time")

    def _golden_inputs(self) -> dict[str, Array]:
        try:
            return read_golden(read_file(self.manifest, self.folder, self.manifest.file(ROLE_GOLDEN)))[0]
        except OSError as error:
            raise ManifestError(f"golden samples cannot be read: {error}") from error

    def _measure_rows(self, runtime: Runtime) -> int:
        inputs = self._golden_inputs()
        golden = len(next(iter(inputs.values())))
        singles = [{name: value[i : i + 1] for name, value in inputs.items()} for i in range(golden)]
        seconds = {1: min(_timed_run(runtime, singles[0])[0] for _ in range(3))}
        if seconds[1] < INLINE_SECONDS:
            return 1
        spent = 0.0
        for rows in batching.ROWS:
            if spent + 2 * rows * seconds[1] > batching.CALIBRATION_SECONDS:
                break
            chosen = [singles[i % golden] for i in range(rows)]
            try:
                (first, found), (second, _) = (_timed_run(runtime, batching.join(chosen)) for _ in range(2))
            except ArenaFullError:
                break
            spent += first + second
            for one, joined in zip(chosen[:golden], batching.split(found, [1] * rows), strict=False):
                if batching.differs(self.manifest, runtime.run(one), joined):
                    return 1
            seconds[rows] = min(first, second)
        return batching.best_rows(seconds)

    def _run_golden_row(self, runtime: Runtime) -> None:
        inputs = self._golden_inputs()
        free = {spec.name for spec in runtime.inputs if spec.shape[:1] == (None,)}
        runtime.run({name: value[:1] if name in free else value for name, value in inputs.items()})

    def _infer(self, runtime: Runtime, jobs: list[Job]) -> None:
        if len(jobs) > 1 and self._infer_joined(runtime, jobs):
            return
        for job in jobs:
            try:
                found = self._timed(runtime, job.inputs, job.asked_ns, _size(job.inputs))
            except BaseException as error:  # it is the caller's
                job.future.set_exception(error)
            else:
                job.future.set_result(found)

    def _infer_joined(self, runtime: Runtime, jobs: list[Job]) -> bool:
        """Answer all jobs by one run; False where that failed, so that each is run alone and only the culprit fails."""
        start = time.perf_counter_ns()
        try:
            outputs = runtime.run(batching.join([job.inputs for job in jobs]))
            found = batching.split(outputs, [job.rows for job in jobs])
        except EdgekitError:
            return False
        spent = time.perf_counter_ns() - start
        wall_ms = int(time.time() * 1000)
        with self._lock:
            self._note_mean(spent / 1e9 / len(jobs))
            for job in jobs:
                self.statistics.succeeded(
                    rows=job.rows,
                    queue_ns=start - job.asked_ns,
                    compute_ns=spent,
                    wall_ms=wall_ms,
                    runs=int(job is jobs[0]),
                )
        for job, answer in zip(jobs, found, strict=True):
            job.future.set_result(answer)
        return True

    def _timed(self, runtime: Runtime, inputs: Mapping[str, Array], asked: int, size: int) -> dict[str, Array]:
        start = time.perf_counter_ns()
        try:
            found = runtime.run(inputs)
        except EdgekitError:
            with self._lock:
                self.statistics.failed(time.perf_counter_ns() - asked)
            raise
        spent = time.perf_counter_ns() - start
        rows = 1 if self._batch_input is None else len(inputs[self._batch_input])
        wall_ms = int(time.time() * 1000)
        with self._lock:
            self._note_mean(spent / 1e9)
            self._learn(size, spent / 1e9)
            self.statistics.succeeded(rows=rows, queue_ns=start - asked, compute_ns=spent, wall_ms=wall_ms)
        return found

    def _note_mean(self, seconds: float) -> None:
        self._mean_seconds += (seconds - self._mean_seconds) * (_SMOOTHING if self._mean_seconds else 1.0)

    def _learn(self, size: int, seconds: float) -> None:
        if seconds < INLINE_SECONDS:
            self._slow_runs = 0
            if size > self._inline_bytes and self._may_inline:
                self._inline_bytes = size
            return
        self._slow_runs += 1
        if self._slow_runs >= _SLOW_RUNS or seconds > _FAR * INLINE_SECONDS:
            self._inline_bytes = -1

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1


def _timed_run(runtime: Runtime, inputs: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
    start = time.perf_counter()
    found = runtime.run(inputs)
    return time.perf_counter() - start, found


def _size(inputs: Mapping[str, Array]) -> int:
    """Bytes of all inputs."""
    size = 0
    for value in inputs.values():  # twice as fast as sum(), for each request
        size += value.nbytes
    return size
