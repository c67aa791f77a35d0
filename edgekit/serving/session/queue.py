"""The queue of one model: bounded, in order of arrival, with a deadline for each request.

`admit` is the rule that refuses requests; `JobQueue` hands jobs from the event loop to the threads that run the model.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from edgekit.errors import UnavailableError
from edgekit.protocols import Runtime
from edgekit.tensors import Array

MIN_RETRY_SECONDS = 1.0  # Retry-After counts whole seconds


class OverloadedError(UnavailableError):
    """A model has more requests than it can answer.

    Args:
        model: Its name.
        waiting: Requests in the queue.
        retry_after_seconds: Time until the queue has probably emptied.
        message: The error message; that the queue is full, where empty.
        advice: An alternative to trying again.
    """

    def __init__(
        self, model: str, waiting: int, retry_after_seconds: float, message: str = "", advice: str = "raise queue_limit"
    ) -> None:
        super().__init__(
            message or f"model {model} has {_requests(waiting)} waiting, which is its limit",
            advice=f"Try again in {math.ceil(retry_after_seconds)} s, or {advice}.",
        )
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(OverloadedError):
    """A request's deadline passed, or would pass, before the model could answer it; it was not run."""


def expected_seconds(waiting: int, mean_seconds: float, instances: int) -> float:
    """Expected time until a new request is answered, in seconds.

    Args:
        waiting: Requests before it, running ones included.
        mean_seconds: Mean time of one run.
        instances: Copies of the model that run at the same time.
    """
    return (waiting // instances + 1) * mean_seconds


def admit(model: str, *, waiting: int, limit: int, left: float | None, expected: float) -> None:
    """Refuse a request at once that would be refused later.

    A request with none before it is always accepted. Otherwise a model with a large mean time would refuse every
    request, and its mean would never be measured again.

    Args:
        model: Name for the error.
        waiting: Requests before it, running ones included.
        limit: Most requests that may wait or run.
        left: Seconds until its deadline; None for none.
        expected: As `expected_seconds`.

    Raises:
        OverloadedError: the queue is full.
        DeadlineError: the deadline has passed, or will probably pass before the answer.
    """
    retry = max(MIN_RETRY_SECONDS, expected)
    if waiting >= limit:
        raise OverloadedError(model, waiting, retry)
    if left is None or (left > 0 and (not waiting or expected <= left)):
        return
    if left <= 0:
        message = f"the deadline passed before the request reached model {model}"
    else:
        message = (
            f"model {model} has {_requests(waiting)} waiting and would answer in about {expected * 1e3:.0f} ms, "
            f"the deadline is in {left * 1e3:.0f} ms"
        )
    raise DeadlineError(model, waiting, retry, message, "allow more time")


def _requests(count: int) -> str:
    return f"{count} request" if count == 1 else f"{count} requests"


class Job:
    """One call of a runtime: a function, or an inference.

    Args:
        function: Called with the runtime; None for an inference with `inputs`.
        inputs: Inputs of an inference.
        arrived_ns: Time of arrival, as `time.perf_counter_ns`.
        deadline: In seconds of the queue's clock; None for no limit.
        rows: Rows of the inference.
        waits: True where others were before it. It does not begin when it would probably end after its deadline; a job
            that found an empty queue begins at any time before it, so that runs are measured again.
        shape: Inferences of equal shape may be joined; None for one that runs alone.
    """

    __slots__ = ("arrived_ns", "deadline", "function", "future", "inputs", "rows", "shape", "waits")

    def __init__(
        self,
        function: Callable[[Runtime], Any] | None = None,
        inputs: Mapping[str, Array] | None = None,
        *,
        arrived_ns: int = 0,
        deadline: float | None = None,
        rows: int = 1,
        shape: object = None,
        waits: bool = False,
    ) -> None:
        self.function, self.inputs = function, inputs or {}
        self.arrived_ns, self.deadline = arrived_ns, deadline
        self.rows, self.shape, self.waits = rows, shape, waits
        self.future: Future[Any] = Future()


class JobQueue:
    """Jobs in order of arrival, from one event loop to the threads of a model's instances.

    Args:
        clock: Monotonic seconds.
        expired: Makes the error of a job whose deadline passed before it began.
        max_rows: Jobs of one shape are joined up to so many rows; 1 for one job at a time.
        run_seconds: The time that a run will probably take.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        expired: Callable[[], Exception],
        *,
        max_rows: int = 1,
        run_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._clock, self._expired, self._run_seconds = clock, expired, run_seconds
        self._jobs: deque[Job] = deque()
        self._own: dict[object, deque[Job]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.max_rows = max_rows

    def put(self, job: Job, *, only: object = None) -> None:
        """Add a job, where `only` is given for that taker alone. After `close` the job is cancelled."""
        with self._changed:
            if self._closed:
                job.future.cancel()
                job.future.set_running_or_notify_cancel()
                return
            if only is None:
                self._jobs.append(job)
                self._changed.notify()
            else:
                self._own.setdefault(only, deque()).append(job)
                self._changed.notify_all()

    def take(self, taker: object) -> list[Job]:
        """Wait for the next jobs, which can no longer be cancelled. Empty when the queue is closed and empty."""
        with self._changed:
            while True:
                own = self._own.get(taker)
                if begun := self._begin(own) if own else self._begin(self._jobs):
                    return begun
                if self._closed and not self._jobs and not own:
                    return []
                if not self._jobs and not own:
                    self._changed.wait()

    def expire(self, job: Job) -> bool:
        """Fail a job that has not begun; False where it has begun or is done."""
        if not self._remove(job):
            return False
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(self._expired())
        return True

    def forget(self, job: Job) -> None:
        """Remove a cancelled job, and free its inputs."""
        self._remove(job)

    def close(self) -> None:
        """Accept no more jobs; those in the queue are still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _remove(self, job: Job) -> bool:
        with self._changed:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            return True

    def _begin(self, jobs: deque[Job]) -> list[Job]:
        """Remove and begin the next job, with the following jobs that may be joined with it."""
        begun: list[Job] = []
        rows = 0
        while jobs:
            job = jobs[0]
            if begun and (job.shape is None or job.shape != begun[0].shape or rows + job.rows > self.max_rows):
                break
            jobs.popleft()
            if not job.future.set_running_or_notify_cancel():
                continue
            needs = self._run_seconds() if job.waits else 0.0
            if job.deadline is not None and self._clock() + needs >= job.deadline:
                job.future.set_exception(self._expired())
                continue
            begun.append(job)
            rows += job.rows
        return begun
