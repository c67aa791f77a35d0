"""One copy of a model on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from edgekit.protocols import Runtime
from edgekit.serving.session.queue import Job, JobQueue


class Instance:
    """Loads a runtime, runs what the queue hands out, and closes it when the queue is closed and empty; one thread.

    The thread does not keep the program from ending: a model that hangs must not.

    Args:
        name: Of the thread.
        queue: Where work comes from.
        load: Opens the runtime.
        infer: Runs inferences: all jobs it is given are of one shape. It sets their futures and does not raise.

    Attributes:
        loaded: The runtime, or why there is none.
        closed: Done when the runtime is.
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
        self.closed.set_running_or_notify_cancel()  # nobody may cancel what is running
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        if not self.loaded.set_running_or_notify_cancel():
            self.closed.set_result(None)
            return
        try:
            runtime = self._load()
        except BaseException as error:  # it is the caller's, who waits for it
            self.closed.set_result(None)
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(runtime)
        while jobs := self._queue.take(self):
            self._run(runtime, jobs)
        try:
            runtime.close()
        except BaseException as error:  # it is the caller's
            self.closed.set_exception(error)
        else:
            self.closed.set_result(None)

    def _run(self, runtime: Runtime, jobs: list[Job]) -> None:
        function, future = jobs[0].function, jobs[0].future
        if function is None:
            self._infer(runtime, jobs)
            return
        try:
            found = function(runtime)
        except BaseException as error:  # it is the caller's
            future.set_exception(error)
        else:
            future.set_result(found)
