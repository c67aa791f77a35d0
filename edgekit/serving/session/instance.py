"""One copy of a model on a thread of its own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from edgekit.protocols import Runtime
from edgekit.serving.session.queue import Job, JobQueue


class Instance:
    """One thread that loads a runtime, runs the queue's jobs, and closes the runtime when the queue is closed.

    It is a daemon thread, so that a model that hangs does not keep the program from ending.

    Args:
        name: Name of the thread.
        queue: The model's jobs.
        load: Opens the runtime.
        infer: Runs inference jobs of one shape. It sets their futures and does not raise.

    Attributes:
        loaded: The runtime, or the error of its load.
        closed: Done when the runtime is closed.
    """

    def __init__(
        self,
        name: str,
        queue: JobQueue,
        load: Callable[[], Runtime],
        infer: Callable[[Runtime, list[Job]], None],
    ) -> None:
        self._queue, self._load, self._infer = queue, load, infer
        self.loaded: Future[Runtime] = Future()
        self.closed: Future[None] = Future()
        self.closed.set_running_or_notify_cancel()  # so that no caller can cancel it
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        if not self.loaded.set_running_or_notify_cancel():
            self.closed.set_result(None)
            return
        set_result(self.loaded, self._load)
        if self.loaded.exception() is not None:
            self.closed.set_result(None)
            return
        runtime = self.loaded.result()
        while jobs := self._queue.take(self):
            self._run(runtime, jobs)
        set_result(self.closed, runtime.close)

    def _run(self, runtime: Runtime, jobs: list[Job]) -> None:
        function = jobs[0].function
        if function is None:
            self._infer(runtime, jobs)
        else:
            set_result(jobs[0].future, functools.partial(function, runtime))


def set_result(future: Future[Any], function: Callable[[], Any]) -> None:
    """Set a future to the result of a function, or to its error."""
    try:
        result = function()
    except BaseException as error:  # raised in the caller, which waits for the future
        future.set_exception(error)
    else:
        future.set_result(result)
