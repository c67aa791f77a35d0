"""Independent tasks of one conversion: here one after the other, or by joblib in several processes at a time.

Where they run is decided by measured time and by the cores that other programs leave free, and makes no difference to
what comes out: linear algebra has one thread in both places, since its last bits depend on their number.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import joblib
from joblib.executor import MemmappingExecutor
from joblib.externals.loky import get_reusable_executor
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits

from converters.candidates.cpu_load import Load
from converters.candidates.task_context import Setting
from edgekit.errors import ConversionError, EdgekitError

START_SECONDS = 5.0  # until processes have started and imported what candidates are made with
ALONE = 1.5  # free cores up to which a second process would mostly wait
SEND_SECONDS = 0.05  # what a task costs beyond its work once they have
WORKER_BYTES = 400 << 20  # of a process with its libraries
COPIES = 4  # of the graphs and samples in a process, at most: read, prepared, in a runtime, in an artifact
WATCH_SECONDS = 1.0
LOKY = "LokyBackend"


class Crew:
    """Does tasks, functions of a Setting and more; use it as a context manager.

    Processes are used where joblib's default backend would start them (as many as there are free cores and memory for),
    or as ``joblib.parallel_config`` says: ``n_jobs=1`` keeps all here, and a backend of another kind gets every task.

    Args:
        setting: What tasks work with.
    """

    def __init__(self, setting: Setting) -> None:
        backend, jobs = get_active_backend()
        self._setting = setting
        self._ours = type(backend).__name__ == LOKY
        self._seconds: dict[str, list[float]] = {}
        self._load = Load()
        self._parallel: Any = None
        self._starting: Any = None
        self._streams = bool(getattr(backend, "supports_return_generator", False))
        self._told = jobs is not None or not self._ours  # then nobody asks whether cores are free
        if getattr(backend, "supports_sharedmem", False) or multiprocessing.current_process().daemon:
            self._jobs: int | None = 1  # what quantizes is not made for threads, and a daemon can have no children
        elif jobs is None and self._ours:
            self._jobs = None  # told when it is first asked for: counting memory needs the calibration
        else:
            self._jobs = int(backend.effective_n_jobs(backend.default_n_jobs if jobs is None else jobs))

    def expect(self, seconds: float) -> None:
        """Start processes now where so many seconds of tasks are to come: they import while this one goes on."""
        if seconds > 2 * START_SECONDS and self._ours and self._streams and self._cores() > ALONE and self.jobs > 1:
            self._starting = self._started()(joblib.delayed(_import_libraries)() for _ in range(self.jobs))

    def at_a_time(self, kind: str, count: int, *, like: str = "") -> int:
        """How many of `count` tasks of a kind should run at a time; 1 for here.

        Processes pay where they save more than they cost, by the mean time of such tasks so far; so the first is done
        here, unless another kind is taken to be `like` it, or processes are there already.
        """
        if count < 2 or self._jobs == 1:
            return 1
        if not self._ours:
            return min(count, self.jobs)
        done = self._seconds.get(kind) or self._seconds.get(like)
        if not done:
            return min(count, self.jobs) if self._parallel is not None and self._cores() > ALONE else 1
        cores = min(count, self._cores())
        saved = sum(done) / len(done) * (count - math.ceil(count / cores))
        start = START_SECONDS * math.ceil(cores) / cores  # which share a core that is not all free
        cost = SEND_SECONDS * count + (start if self._parallel is None else 0.0)
        return min(count, self.jobs) if saved > cost else 1

    def _cores(self) -> float:
        """Cores for tasks: as many as were asked for, else those that are free and that there is memory for."""
        if self._told:
            return self.jobs
        free = self._load.free()
        return free if self._jobs is None else min(free, self._jobs)  # memory is counted when it matters

    @property
    def jobs(self) -> int:
        """How many processes there may be."""
        if self._jobs is None:
            room = _free_bytes() // (WORKER_BYTES + COPIES * self._setting.bytes)
            self._jobs = max(1, min(math.ceil(self._load.free()), room))
        return self._jobs

    def left(self, kind: str, count: int) -> float | None:
        """Seconds that `count` more tasks of a kind will take by those so far; None where there were none."""
        done = self._seconds.get(kind)
        return sum(done) / len(done) * -(-count // self.at_a_time(kind, count)) if done else None

    def here(self, kind: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do one task in this process; an EdgekitError that it raised is its result."""
        with self._load.watched():
            _, seconds, found = _done(work, 0, self._setting, arguments)
        self._seconds.setdefault(kind, []).append(seconds)
        return found

    def away(self, kind: str, work: Callable[..., Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Do tasks (tuples of arguments) in other processes.

        Returns:
            (place in `tasks`, result) as they come; an EdgekitError that a task raised is its result.

        Raises:
            ConversionError: a process ended, as by a system short of memory.
        """
        calls = [joblib.delayed(_done)(work, place, self._setting, task) for place, task in enumerate(tasks)]
        self._wait_for_start()
        results = self._started()(calls)
        try:
            for place, seconds, found in results:
                self._seconds.setdefault(kind, []).append(seconds)
                yield place, found
        except BrokenProcessPool as error:
            raise ConversionError(
                f"a process that worked on {kind} ended without a word, as when the system is short of memory",
                advice="Close other programs, or convert with joblib.parallel_config(n_jobs=1).",
            ) from error
        finally:
            if isinstance(results, Generator):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # joblib's, about results that nobody waits for any more
                    results.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes; no error when there are none."""
        if self._parallel is None:
            return
        parallel, self._parallel = self._parallel, None
        self._wait_for_start()
        if self._ours:  # joblib would leave them to be used again, for five minutes
            executor = get_reusable_executor(reuse=True, kill_workers=True)
            if isinstance(executor, MemmappingExecutor):
                executor.terminate(kill_workers=True)  # with what they had mapped
            else:  # a new one in the place of one that broke
                executor.shutdown(kill_workers=True)
        parallel.__exit__(None, None, None)

    def _wait_for_start(self) -> None:
        """Let processes that were started beforehand come up: those that are ended before that complain."""
        starting, self._starting = self._starting, None
        with contextlib.suppress(BrokenProcessPool):  # the next task will tell
            for _ in starting or ():
                pass

    def _started(self) -> Any:
        if self._parallel is None:
            watched = {"initializer": _settle, "initargs": (os.getpid(),)} if self._ours else {}
            returned = "generator_unordered" if self._streams else "list"
            parallel = joblib.Parallel(
                n_jobs=self.jobs, return_as=returned, batch_size=1, pre_dispatch="all", **watched
            )
            self._parallel = parallel.__enter__()
        return self._parallel


def _import_libraries() -> None:
    """What a process does first: it takes seconds, whatever its first task is."""
    importlib.import_module("converters.candidates.builder")


def _done(work: Callable[..., Any], place: int, setting: Setting, arguments: Any) -> tuple[int, float, Any]:
    begun = time.monotonic()
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            found = work(setting, *arguments)
        except EdgekitError as error:  # it is for whoever asked to say what becomes of it
            found = error
    return place, time.monotonic() - begun, found


def _settle(parent: int) -> None:
    """In a new process: leave Ctrl-C, which reaches the whole group, to the parent, and end when that has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _free_bytes() -> int:
    """Memory that can be had without swapping; all that there is where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
