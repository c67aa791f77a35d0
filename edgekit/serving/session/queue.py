"""The queue before one model: bounded, in order of arrival, each request with the time it may take.

`admit` is the rule; `JobQueue` hands work from the event loop to the threads that run a model.
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

LEAST_RETRY_SECONDS = 1.0  # Retry-After counts whole seconds


class OverloadedError(UnavailableError):
    """A model has more to do than it can take.

    Args:
        model: Its name.
        waiting: Requests in the queue.
        retry_after_seconds: When the queue is likely to have emptied.
        message: What happened, where it is not that the queue is full.
        advice: What to do besides asking again.
    """

    def __init__(
        self, model: str, waiting: int, retry_after_seconds: float, message: str = "", advice: str = "raise queue_limit"
    ) -> None:
        super().__init__(
            message or f"model {model} has {_requests(waiting)} waiting, which is its limit",
            advice=f"Ask again in {math.ceil(retry_after_seconds)} s, or {advice}.",
        )
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(OverloadedError):
    """A request's time was over, or would have been, before the model could answer it; it was not run."""


def expected_seconds(waiting: int, mean_seconds: float, instances: int) -> float:
    """When a request that comes now is likely to be answered, in seconds from now.

    Args:
        waiting: Requests before it, those that run included.
        mean_seconds: Of one run.
        instances: Copies of the model that work at a time.
    """
    return (waiting // instances + 1) * mean_seconds


def admit(model: str, *, waiting: int, limit: int, left: float | None, expected: float) -> None:
    """Refuse at once what could only be refused later.

    A request with nothing before it is always taken: the mean of a model that no request may run would never mend.

    Args:
        model: For the error.
        waiting: Requests before it, those that run included.
        limit: Most that may be there.
        left: Seconds until its deadline; None for none.
        expected: As `expected_seconds`.

    Raises:
        OverloadedError: the queue is full.
        DeadlineError: it is unlikely to be answered in time, or its time is over already.
    """
    retry = max(LEAST_RETRY_SECONDS, expected)
    if waiting >= limit:
        raise OverloadedError(model, waiting, retry)
    if left is None or (left > 0 and (not waiting or expected <= left)):
        return
    if left <= 0:
        message = f"the deadline had passed before model {model} could be asked"
    else:
        message = (
            f"model {model} has {_requests(waiting)} waiting and would answer in about {expected * 1e3:.0f} ms, "
            f"the deadline is in {left * 1e3:.0f} ms"
        )
    raise DeadlineError(model, waiting, retry, message, "allow more time")


def _requests(count: int) -> str:
    return f"{count} request" if count == 1 else f"{count} requests"


class Job:
    """One thing to be done with a runtime.

    Args:
        function: What; None for an inference with `inputs`.
        inputs: Of an inference.
        asked_ns: When it was asked for, as `time.perf_counter_ns`.
        deadline: It must not begin after this, in seconds of the queue's clock; None for no limit.
        shape: Inferences of the same shape may run as one; None for one that may not.
    """

    __slots__ = ("asked_ns", "deadline", "function", "future", "inputs", "rows", "shape")

    def __init__(
        self,
        function: Callable[[Runtime], Any] | None = None,
        inputs: Mapping[str, Array] | None = None,
        *,
        asked_ns: int = 0,
        deadline: float | None = None,
        rows: int = 1,
        shape: object = None,
    ) -> None:
        self.function, self.inputs = function, inputs or {}
        self.asked_ns, self.deadline = asked_ns, deadline
        self.rows, self.shape = rows, shape
        self.future: Future[Any] = Future()


class JobQueue:
    """Jobs in order of arrival, from one event loop to the threads of a model's instances.

    Args:
        clock: Monotonic seconds.
        expired: Makes the error of a job whose time was over before it began.
        most_rows: Jobs of one shape are handed out together up to so many rows; 1 for one at a time.
    """

    def __init__(self, clock: Callable[[], float], expired: Callable[[], Exception], *, most_rows: int = 1) -> None:
        self._clock, self._expired = clock, expired
        self._jobs: deque[Job] = deque()
        self._own: dict[object, deque[Job]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.most_rows = most_rows

    def put(self, job: Job, *, only: object = None) -> None:
        """Add a job, for the one taker `only` where it is given; one that comes after `close` is cancelled."""
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
        """Wait for what is next: jobs that have begun and can no longer be cancelled; none when all is done."""
        with self._changed:
            while True:
                own = self._own.get(taker)
                if found := self._begin(own) if own else self._begin(self._jobs):
                    return found
                if self._closed and not self._jobs and not own:
                    return []
                if not self._jobs and not own:
                    self._changed.wait()

    def expire(self, job: Job) -> bool:
        """Fail a job that has not begun; False when it has, or is done."""
        if not self._remove(job):
            return False
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(self._expired())
        return True

    def forget(self, job: Job) -> None:
        """Take a cancelled job out, and what it holds with it."""
        self._remove(job)

    def close(self) -> None:
        """Take nothing more; what is there is still handed out."""
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
        """The next job, with those behind it that may run as one with it."""
        found: list[Job] = []
        rows = 0
        while jobs:
            job = jobs[0]
            if found and (job.shape is None or job.shape != found[0].shape or rows + job.rows > self.most_rows):
                break
            jobs.popleft()
            if not job.future.set_running_or_notify_cancel():
                continue
            if job.deadline is not None and self._clock() >= job.deadline:
                job.future.set_exception(self._expired())
                continue
            found.append(job)
            rows += job.rows
        return found
