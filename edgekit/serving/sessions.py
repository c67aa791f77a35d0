"""One model in use: a runtime on its own thread behind a bounded queue, and the switch to another without a gap."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from edgekit.errors import EdgekitError, ManifestError, UnavailableError
from edgekit.golden import read_golden
from edgekit.manifest import ROLE_GOLDEN, Manifest
from edgekit.protocols import Runtime
from edgekit.serving.statistics import Statistics
from edgekit.tensors import Array

T = TypeVar("T")
Load = Callable[[Manifest, Path], Runtime]

INLINE_SECONDS = 0.0005  # handing a run to a thread and back costs a fifth of this
_SLOW_RUNS, _FAR = 3, 20  # a single slow run is the machine's doing, unless it is that much slower
_TURNS = 8  # runs on the event loop before others get their turn
_SMOOTHING = 0.1  # weight of the newest run in the mean time of one


class OverloadedError(UnavailableError):
    """A model's queue is full.

    Args:
        model: Its name.
        waiting: Requests in the queue.
        retry_after_seconds: When the queue is likely to have emptied.
    """

    def __init__(self, model: str, waiting: int, retry_after_seconds: float) -> None:
        super().__init__(
            f"model {model} has {waiting} requests waiting, which is its limit",
            advice=f"Ask again in {math.ceil(retry_after_seconds)} s, or raise queue_limit.",
        )
        self.retry_after_seconds = retry_after_seconds


class Session:
    """A loaded bundle. Requests run one at a time in the order in which they came, on the session's own thread.

    A request no larger than one that took less than INLINE_SECONDS runs on the event loop when nothing is before it,
    because two switches between threads cost more than such a model. Some that take longer end that until a run on the
    thread was as fast again, so the loop never waits long.

    Use `Session.open`. All calls are made on one event loop.

    Attributes:
        manifest, digest, folder: The bundle.
        runtime: Its logical tensors and provider may be read at any time; only the session runs it.
        statistics: What it has done; to be read only.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, runtime: Runtime, executor: ThreadPoolExecutor, queue_limit: int
    ) -> None:
        self.manifest = manifest
        self.digest = manifest.digest
        self.folder = folder
        self.runtime = runtime
        self.statistics = Statistics()
        self._executor = executor
        self._queue_limit = queue_limit
        self._lock = threading.Lock()
        self._pending = 0
        self._mean_seconds = 0.0
        self._inline_bytes = -1  # inputs up to this size are known to be fast; none are
        self._slow_runs = 0  # in a row
        self._turns = 0

    @classmethod
    async def open(cls, manifest: Manifest, folder: Path, load: Load, *, queue_limit: int) -> Session:
        """Load a bundle's runtime on the thread that will run it.

        Args:
            manifest: Of the bundle.
            folder: Where its files are.
            load: Loads the runtime; called on the session's thread.
            queue_limit: Most requests that may wait or run at a time.

        Raises:
            Whatever `load` raises.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"model-{manifest.name}")
        try:
            runtime = await asyncio.wrap_future(executor.submit(load, manifest, folder))
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(manifest, folder, runtime, executor, queue_limit)

    async def warm(self) -> None:
        """Run the first golden row, so that no client pays for the runtime's first run.

        Raises:
            ManifestError: the golden samples are missing or malformed.
            DataError, RuntimeLoadError: as Runtime.run.
        """
        await self.call(self._run_golden_row)

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return self._pending

    @property
    def wait_seconds(self) -> float:
        """How long a request that came now would likely take."""
        return (self._pending + 1) * self._mean_seconds

    async def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. A caller that is cancelled while it waits leaves the queue.

        Raises:
            OverloadedError: the queue is full.
            DataError, RuntimeLoadError: as Runtime.run.
        """
        if self._pending >= self._queue_limit:
            raise OverloadedError(self.manifest.name, self._pending, max(1.0, self.wait_seconds))
        asked = time.perf_counter_ns()
        if self._pending == 0 and _size(inputs) <= self._inline_bytes:
            found = self._timed(self.runtime, inputs, asked)
            self._turns += 1
            if self._turns % _TURNS == 0:
                await asyncio.sleep(0)  # a caller that asks in a loop would keep the event loop from everyone else
            return found
        return await self.call(lambda runtime: self._timed(runtime, inputs, asked))

    async def call(self, function: Callable[[Runtime], T]) -> T:
        """Call `function(runtime)` on the session's thread, after what came before it; not bound by the limit."""
        with self._lock:
            self._pending += 1
        future = self._executor.submit(function, self.runtime)
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Let everything that was asked before finish, then free the model."""
        # The thread takes its work in order, so its last piece of work is to close.
        closing = self._executor.submit(self.runtime.close)
        self._executor.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    def _run_golden_row(self, runtime: Runtime) -> None:
        path = self.folder / self.manifest.file(ROLE_GOLDEN).path
        try:
            inputs, _ = read_golden(path.read_bytes())
        except OSError as error:
            raise ManifestError(f"golden samples cannot be read: {error}") from error
        free = {spec.name for spec in runtime.inputs if spec.shape[:1] == (None,)}
        runtime.run({name: value[:1] if name in free else value for name, value in inputs.items()})

    def _timed(self, runtime: Runtime, inputs: Mapping[str, Array], asked: int) -> dict[str, Array]:
        start = time.perf_counter_ns()
        try:
            found = runtime.run(inputs)
        except EdgekitError:
            self.statistics.failed(time.perf_counter_ns() - asked)
            raise
        spent = time.perf_counter_ns() - start
        self._mean_seconds += (spent / 1e9 - self._mean_seconds) * (_SMOOTHING if self._mean_seconds else 1.0)
        self._learn(_size(inputs), spent / 1e9)
        rows = next((len(inputs[spec.name]) for spec in runtime.inputs if spec.shape[:1] == (None,)), 1)
        wall_ms = int(time.time() * 1000)
        self.statistics.succeeded(rows=rows, queue_ns=start - asked, compute_ns=spent, wall_ms=wall_ms)
        return found

    def _learn(self, size: int, seconds: float) -> None:
        if seconds < INLINE_SECONDS:
            self._slow_runs = 0
            self._inline_bytes = max(self._inline_bytes, size)
            return
        self._slow_runs += 1
        if self._slow_runs >= _SLOW_RUNS or seconds > _FAR * INLINE_SECONDS:
            self._inline_bytes = -1

    def _done(self, _: Future[T]) -> None:
        with self._lock:
            self._pending -= 1


def _size(inputs: Mapping[str, Array]) -> int:
    """Bytes of all inputs."""
    return sum(value.nbytes for value in inputs.values())


class Slot:
    """Where the session of one model stands; a switch happens between two requests."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self.swaps = 0

    @property
    def session(self) -> Session | None:
        """What answers now. Use it before the next await: afterwards it may be another."""
        return self._session

    async def swap(self, new: Session | None) -> None:
        """Answer with `new` from now on; returns when the one before has finished its requests and is closed.

        The caller has loaded and warmed `new`; None leaves the model without a local answer.
        """
        old, self._session = self._session, new
        self.swaps += 1
        if old is not None:
            await old.close()
