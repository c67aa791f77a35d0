"""Runs the independent tasks of one conversion: in this process one by one, or by joblib in several processes.

Measured time and the free cores decide where tasks run. The results are the same in both places: linear algebra always
uses one thread, because its last bits depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any

import joblib
import msgspec
from joblib.executor import MemmappingExecutor
from joblib.externals.loky import get_reusable_executor
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits

from converters.candidates.cpu_load import CpuLoad
from converters.candidates.task_context import TaskContext
from converters.machine import (
    free_memory_bytes,
    memory_limit,
    processes_killed_for_memory,
    resident_bytes,
    return_memory,
)
from edgekit.errors import ConversionError, EdgekitError

ONE_CORE = 1.5  # up to this many free cores, a second process would mostly wait
WORKER_BYTES = 400 << 20  # memory of a process with its libraries
MOST_WORKER_BYTES = 1 << 30  # where a process would need more, tasks run in this process, as with one core
COPIES = 4  # largest number of copies of graphs and samples in a process: read, prepared, in a runtime, in an artifact
WATCH_SECONDS = 1.0
OVER_LIMIT = 77  # exit status of a process that used more memory than it may
LOKY = "LokyBackend"
LOKY_THREAD = "ExecutorManagerThread"


class ProcessCosts(msgspec.Struct, frozen=True):
    """Costs of other processes, which decide whether they are used.

    Attributes:
        start_seconds: Time until processes have started and imported the libraries of their tasks.
        send_seconds: Extra time of one task in a process that has started.
    """

    start_seconds: float = 5.0
    send_seconds: float = 0.05


def _no_warm_up() -> None:
    """Do nothing."""


class TaskPool:
    """Runs tasks. A task is a function of a TaskContext and more arguments. Use the pool as a context manager.

    Other processes are used where joblib's default backend would start them (as many as there are free cores and memory
    for), or as ``joblib.parallel_config`` says: ``n_jobs=1`` keeps all tasks in this process, and a backend of another
    kind gets every task.

    Args:
        task_context: The first argument of every task.
        warm_up: A module-level function that processes run first. Unpickling it imports its module, and so the
            libraries of the tasks.
        costs: Costs of other processes.
    """

    def __init__(
        self,
        task_context: TaskContext,
        *,
        warm_up: Callable[[], None] = _no_warm_up,
        costs: ProcessCosts | None = None,
    ) -> None:
        backend, jobs = get_active_backend()
        self._task_context = task_context
        self._warm_up = warm_up
        self._costs = costs or ProcessCosts()
        self._is_default = type(backend).__name__ == LOKY
        self._seconds: dict[str, list[float]] = {}
        self._load = CpuLoad()
        self._parallel: Any = None
        self._starting: Any = None
        self._streams = bool(getattr(backend, "supports_return_generator", False))
        self._fixed_jobs = jobs is not None or not self._is_default  # then free cores are not counted
        if getattr(backend, "supports_sharedmem", False) or multiprocessing.current_process().daemon:
            self._jobs: int | None = 1  # quantizers are not thread-safe, and a daemon may have no children
        elif jobs is None and self._is_default:
            self._jobs = None  # computed when it is first needed: it needs the memory of the graphs
        else:
            self._jobs = int(backend.effective_n_jobs(backend.default_n_jobs if jobs is None else jobs))

    def expect(self, seconds: float) -> None:
        """Start processes now if `seconds` of tasks will follow: they import libraries while this process works."""
        worthwhile = seconds > 2 * self._costs.start_seconds
        if worthwhile and self._is_default and self._streams and self._cores() > ONE_CORE and self.jobs > 1:
            self._starting = self._sent(joblib.delayed(self._warm_up)() for _ in range(self.jobs))

    def at_a_time(self, kind: str, count: int, *, like: str = "") -> int:
        """How many of `count` tasks of a kind should run at a time; 1 means in this process.

        Processes are used where they save more time than they cost, by the mean time of earlier tasks of this kind. So
        the first task runs in this process, unless the times of the kind `like` are known or processes have started.
        """
        if count < 2 or self._jobs == 1:
            return 1
        if not self._is_default:
            return min(count, self.jobs)
        seconds = self._seconds.get(kind) or self._seconds.get(like)
        if not seconds:
            return min(count, self.jobs) if self._parallel is not None and self._cores() > ONE_CORE else 1
        cores = min(count, self._cores())
        saved = sum(seconds) / len(seconds) * (count - math.ceil(count / cores))
        start = self._costs.start_seconds * math.ceil(cores) / cores  # processes share a core that is partly free
        cost = self._costs.send_seconds * count + (start if self._parallel is None else 0.0)
        return min(count, self.jobs) if saved > cost else 1

    def _cores(self) -> float:
        """Cores for tasks: as many as the user set, or else the free cores that there is memory for."""
        if self._fixed_jobs:
            return self.jobs
        free = self._load.free()
        return free if self._jobs is None else min(free, self._jobs)  # memory is counted only when jobs are needed

    @property
    def jobs(self) -> int:
        """How many processes there may be: as many as cores are free, unless their memory is not, or is large."""
        if self._jobs is None:
            needed = WORKER_BYTES + COPIES * self._task_context.bytes
            fitting = free_memory_bytes() // needed if needed <= MOST_WORKER_BYTES else 1
            self._jobs = max(1, min(math.ceil(self._load.free()), fitting))
        return self._jobs

    def seconds_left(self, kind: str, count: int) -> float | None:
        """Seconds that `count` more tasks of a kind will take, by earlier ones; None where there were none."""
        seconds = self._seconds.get(kind)
        return sum(seconds) / len(seconds) * -(-count // self.at_a_time(kind, count)) if seconds else None

    def run_local(self, kind: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run one task in this process. The result is an EdgekitError where the task raised one."""
        with self._load.watched():
            _, seconds, result = _run(work, 0, self._task_context, arguments)
        self._seconds.setdefault(kind, []).append(seconds)
        return result

    def run_remote(self, kind: str, work: Callable[..., Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Run tasks (tuples of arguments) in other processes.

        Returns:
            (index in `tasks`, result) in order of completion. A result is an EdgekitError where the task raised one.

        Raises:
            ConversionError: a process ended.
        """
        killed = processes_killed_for_memory()
        calls = [joblib.delayed(_run)(work, index, self._task_context, task) for index, task in enumerate(tasks)]
        self._wait_for_start()
        results = self._sent(calls)
        try:
            for index, seconds, result in results:
                self._seconds.setdefault(kind, []).append(seconds)
                yield index, result
        except BrokenProcessPool as error:
            raise _ended(kind, error, killed) from error
        finally:
            if isinstance(results, Generator):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # joblib warns about results that are not read any more
                    results.close()

    def __enter__(self) -> TaskPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes, if there are any."""
        if self._parallel is None:
            return
        parallel, self._parallel = self._parallel, None
        self._wait_for_start()
        if self._is_default:  # joblib would keep the processes for five minutes
            executor = get_reusable_executor(reuse=True, kill_workers=True)
            if isinstance(executor, MemmappingExecutor):
                executor.terminate(kill_workers=True)  # also removes the mapped files
            else:  # a new executor, after the old one broke
                executor.shutdown(kill_workers=True)
        parallel.__exit__(None, None, None)

    def _wait_for_start(self) -> None:
        """Wait for processes that are starting: processes that are ended during the start print errors."""
        starting, self._starting = self._starting, None
        with contextlib.suppress(BrokenProcessPool):  # the next task reports it
            for _ in starting or ():
                pass

    def _sent(self, calls: Iterable[Any]) -> Any:
        """The results of calls in other processes. Processes that are missing start here."""
        with _interrupts_held_back():
            return self._started()(calls)

    def _started(self) -> Any:
        if self._parallel is None:
            _hide_withdrawn_tasks()
            watched = (
                {"initializer": _initialize, "initargs": (os.getpid(), memory_limit())} if self._is_default else {}
            )
            returned = "generator_unordered" if self._streams else "list"
            parallel = joblib.Parallel(
                n_jobs=self.jobs, return_as=returned, batch_size=1, pre_dispatch="all", **watched
            )
            self._parallel = parallel.__enter__()
        return self._parallel


def _hide_withdrawn_tasks() -> None:
    """Do not print the KeyError of loky's thread: where an error ends a pool, it may look for a task that is gone."""
    shown = threading.excepthook
    if getattr(shown, "hides_withdrawn_tasks", False):
        return

    def report(raised: threading.ExceptHookArgs) -> None:
        name = raised.thread.name if raised.thread is not None else ""
        if name != LOKY_THREAD or not issubclass(raised.exc_type, KeyError):
            shown(raised)

    report.hides_withdrawn_tasks = True  # type: ignore[attr-defined]
    threading.excepthook = report


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block. Processes that start within never get it.

    The whole group of processes gets Ctrl-C, and a process that imports its libraries prints a traceback then; it can
    ignore the signal by itself only after that. A new process takes over the signals that its parent holds back.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # loky starts it with its first process, and that lets the signal through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended(kind: str, error: BaseException, killed_before: int) -> ConversionError:
    """The error for a process that ended. It blames memory only with evidence: a kill, or its exit status."""
    if processes_killed_for_memory() > killed_before:
        return ConversionError(
            f"the system ran out of memory and killed a process that worked on {kind}",
            advice="Close other programs, or convert with joblib.parallel_config(n_jobs=1).",
        )
    if f"EXIT({OVER_LIMIT})" in str(error):
        return ConversionError(
            f"a process that worked on {kind} needed more memory than was free when it started",
            advice="Close other programs, or convert with joblib.parallel_config(n_jobs=1).",
        )
    signals = sorted(set(re.findall(r"SIG[A-Z]+", str(error))))
    return ConversionError(
        f"a process that worked on {kind} ended without an error of its own"
        + (f": signal {', '.join(signals)}" if signals else ""),
        advice="Convert with joblib.parallel_config(n_jobs=1) to see which candidate ends it.",
    )


def _run(work: Callable[..., Any], index: int, task_context: TaskContext, arguments: Any) -> tuple[int, float, Any]:
    begun = time.monotonic()
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            result = work(task_context, *arguments)
        except EdgekitError as error:  # the caller decides what to do with it
            result = error
    return_memory()
    return index, time.monotonic() - begun, result


def _initialize(parent: int, memory_bytes: int) -> None:
    """Prepare a new process: leave Ctrl-C, which the whole group gets, to the parent, and end when the parent ends.

    It ends too where it uses more than `memory_bytes`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            if resident_bytes(os.getpid()) > memory_bytes:
                os._exit(OVER_LIMIT)
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
