"""A runtime in a process of its own, so that crashes, hangs and leaks of a model do not harm the agent."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import Manifest
from edgekit.errors import ArenaFullError, DataError, EdgekitError, ManifestError, RuntimeLoadError, UnavailableError
from edgekit.serving.session.memory_usage import pss_bytes
from edgekit.serving.worker.errors import WorkerCrashedError, WorkerRestartingError
from edgekit.serving.worker.shared_memory import (
    Channel,
    Failed,
    Load,
    Loaded,
    Message,
    Ran,
    Run,
    SharedTensors,
    WorkerLostError,
    shared_file,
)
from edgekit.tensors import Array, TensorSpec

log = logging.getLogger(__name__)

OPEN_RUNTIME = "edgekit.runtimes:open_runtime"
RUN_SECONDS, LOAD_SECONDS = 30.0, 900.0
STABLE_SECONDS = 60.0
RESTART_WAIT_SECONDS = 2.0  # how long a request waits for a worker that is being restarted
_END_SECONDS = 5.0
_PLAIN_ERRORS = {
    one.__name__: one for one in (ArenaFullError, DataError, ManifestError, RuntimeLoadError, UnavailableError)
}
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from edgekit.serving.worker import child as w; "
_BOOT += "w.main(*map(int, sys.argv[2:]))"


class Backoff:
    """The wait before a restart. Rules only.

    After a stable minute, the first crash needs no wait. Each crash that follows soon doubles the wait.

    Args:
        first_seconds: First wait that is not 0.
        longest_seconds: Longest wait.
    """

    def __init__(self, first_seconds: float = 1.0, longest_seconds: float = 60.0) -> None:
        self.first_seconds, self._longest_seconds = first_seconds, longest_seconds
        self._wait = 0.0
        self._started_at = 0.0

    def started(self, now: float) -> None:
        """Note that the process was started."""
        self._started_at = now

    def crashed(self, now: float) -> float:
        """Seconds until the next start, after a crash."""
        if now - self._started_at >= STABLE_SECONDS:
            self._wait = 0.0
        wait = self._wait
        self._wait = min(max(2 * wait, self.first_seconds), self._longest_seconds)
        return wait


class WorkerRuntime:
    """Runtime of a bundle that another process (the worker) runs; tensors go through shared memory.

    When the worker crashes, or is ended because a run took over `run_seconds`, its request fails and the worker is
    restarted, at once after the first crash and later after crashes in a row. Requests that arrive meanwhile wait for a
    moment and are then refused with the time of the next start. The worker always ends when this process ends.

    Args:
        manifest: Manifest of the bundle.
        folder: Folder of its files.
        options: Arguments of `loader`, of plain types.
        loader: ``module:function`` that opens the bundle in the worker.
        run_seconds: Longest run.
        load_seconds: Longest load; TensorRT builds engines for minutes.
        backoff: Waits before restarts; the defaults where None.

    Attributes:
        crashes: Number of crashes, runs that took too long included.
        restarts: Number of restarts.

    Raises:
        RuntimeLoadError: the bundle cannot be loaded, or the worker crashed while loading it.
        EdgekitError: any other error of `loader`.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        *,
        options: Mapping[str, Any] | None = None,
        loader: str = OPEN_RUNTIME,
        run_seconds: float = RUN_SECONDS,
        load_seconds: float = LOAD_SECONDS,
        backoff: Backoff | None = None,
    ) -> None:
        self._name = manifest.name
        self._load = Load(manifest.canonical_bytes(), str(folder), loader, dict(options or {}))
        self._run_seconds, self._load_seconds = run_seconds, load_seconds
        self._backoff = backoff or Backoff()
        self._changed = threading.Condition()
        self._process: _Process | None = None
        self._next_start = 0.0
        self._closing = threading.Event()
        self.restarts = self.crashes = 0
        self._process, self._loaded = self._start()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Logical inputs."""
        return self._loaded.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Logical outputs."""
        return self._loaded.outputs

    @property
    def provider(self) -> str:
        """The delegate or execution provider in use."""
        return self._loaded.provider

    @property
    def providers(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Requested execution providers, and those in use."""
        return self._loaded.asked, self._loaded.got

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def memory_bytes(self) -> int:
        """Memory of the worker; 0 while there is none."""
        pid = self.pid
        return 0 if pid is None else pss_bytes(pid)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see Runtime.run.

        Raises:
            WorkerCrashedError: the worker ended during this run, or took too long.
            WorkerRestartingError: the worker is being restarted.
        """
        process = self._wait_for_process()
        try:
            return process.run(inputs, self._run_seconds)
        except (WorkerLostError, TimeoutError) as error:
            self._lost(process)
            hung = isinstance(error, TimeoutError)
            how = f"was ended because it took over {self._run_seconds:g} s" if hung else process.cause_of_end(error)
            log.error("the worker of model %s %s", self._name, how)
            raise WorkerCrashedError(f"the worker of model {self._name} {how}") from error

    def close(self) -> None:
        """End the worker."""
        self._closing.set()
        with self._changed:
            process, self._process = self._process, None
            self._changed.notify_all()
        if process is not None:
            process.end()

    def _wait_for_process(self) -> _Process:
        with self._changed:
            if self._process is None and not self._closing.is_set():
                self._changed.wait(RESTART_WAIT_SECONDS if self._next_start <= time.monotonic() else 0.0)
            if self._closing.is_set():
                raise RuntimeLoadError(f"the worker of model {self._name} is closed")
            if self._process is None:
                retry = max(1.0, self._next_start - time.monotonic())
                message = f"the worker of model {self._name} has crashed and is being restarted"
                raise WorkerRestartingError(self._name, 0, retry, message, "look for the reason in the agent's log")
            return self._process

    def _lost(self, process: _Process) -> None:
        process.kill()
        with self._changed:
            self._process = None
            self.crashes += 1
            now = time.monotonic()
            self._next_start = now + self._backoff.crashed(now)
        threading.Thread(target=self._restart, name=f"restart-{self._name}", daemon=True).start()

    def _restart(self) -> None:
        while not self._closing.wait(max(0.0, self._next_start - time.monotonic())):
            try:
                process, loaded = self._start()
            except EdgekitError as error:
                now = time.monotonic()
                self._next_start = now + max(self._backoff.crashed(now), self._backoff.first_seconds)
                log.error("the worker of model %s cannot be restarted: %s", self._name, error)
                continue
            with self._changed:
                self.restarts += 1
                if not self._closing.is_set():
                    self._process, self._loaded = process, loaded
                    self._changed.notify_all()
                    return
            process.end()
            return

    def _start(self) -> tuple[_Process, Loaded]:
        self._backoff.started(time.monotonic())
        process = _Process(self._name)
        with contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            try:
                loaded = process.load(self._load, self._load_seconds)
            except WorkerLostError as error:
                process.kill()
                how = process.cause_of_end(error)
                raise RuntimeLoadError(f"model {self._name} cannot be loaded: its worker {how}") from error
            except TimeoutError as error:
                raise RuntimeLoadError(f"loading model {self._name} took over {self._load_seconds:g} s") from error
            stack.pop_all()
        return process, loaded


class _Process:
    """The agent's side of a worker process."""

    def __init__(self, name: str) -> None:
        ours, theirs = socket.socketpair()
        memory = shared_file()
        life_there, self._life = os.pipe()
        ends = (theirs.fileno(), memory, life_there)
        # -I: neither the environment nor the working folder decides what is imported; the path is this process's.
        command = [sys.executable, "-I", "-X", "faulthandler", "-c", _BOOT, json.dumps(sys.path), *map(str, ends)]
        with contextlib.ExitStack() as always, contextlib.ExitStack() as on_error:
            always.callback(theirs.close)
            always.callback(os.close, life_there)
            on_error.callback(ours.close)
            on_error.callback(os.close, memory)
            on_error.callback(os.close, self._life)
            try:
                self._child = subprocess.Popen(command, pass_fds=ends, stdin=subprocess.DEVNULL, stdout=2)
            except OSError as error:
                raise RuntimeLoadError(f"the worker of model {name} cannot be started: {error}") from error
            on_error.pop_all()
        self._channel, self._memory = Channel(ours), SharedTensors(memory)
        self.pid, self._killed = self._child.pid, False

    def load(self, message: Load, seconds: float) -> Loaded:
        self._channel.send(message)
        reply = self._receive(seconds)
        if not isinstance(reply, Loaded):
            raise WorkerLostError(f"it answered {type(reply).__name__} to Load")
        return reply

    def run(self, inputs: Mapping[str, Array], seconds: float) -> dict[str, Array]:
        tensors, end = self._memory.write(inputs)
        self._channel.send(Run(tensors, end))
        reply = self._receive(seconds)
        if not isinstance(reply, Ran):
            raise WorkerLostError(f"it answered {type(reply).__name__} to Run")
        return self._memory.read(reply.outputs, copy=True)

    def cause_of_end(self, error: BaseException) -> str:
        """How the process ended, as the end of a sentence."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._child.wait(_END_SECONDS)
            if code == -signal.SIGKILL and not self._killed:
                return "died of SIGKILL, probably because the machine ran out of memory"
            if code < 0 and not self._killed:
                with contextlib.suppress(ValueError):
                    return f"died of {signal.Signals(-code).name}"
            if code > 0:
                return f"ended with status {code}"
        return f"was lost: {error}"

    def end(self) -> None:
        """Let the process end; kill it where it does not end in time."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_END_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the process."""
        self._channel.close()
        try:
            self._child.wait(0.2)  # a crashing process needs a moment to write its traceback
        except subprocess.TimeoutExpired:
            self._killed = True
            self._child.kill()
            self._child.wait()
        if self._life >= 0:
            os.close(self._life)
            self._memory.close()
            self._life = -1

    def _receive(self, seconds: float) -> Message:
        reply = self._channel.receive(seconds)
        if isinstance(reply, Failed):
            kind: Callable[..., EdgekitError] = _PLAIN_ERRORS.get(reply.kind, RuntimeLoadError)
            raise kind(reply.message, advice=reply.advice)
        return reply
