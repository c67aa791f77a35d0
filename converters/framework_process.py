"""Runs TensorFlow and PyTorch in processes of their own. Functions are called by name; output goes to a log.

TensorFlow takes ten seconds and 600 MB to import, prints on both streams, and can end its process. So one child process
is started when it is first needed, and serves a whole conversion. It is a plain child and not a process pool, because a
pool imports the user's script a second time, and a script without a ``__main__`` guard would convert twice. PyTorch has
another process, because both frameworks bring copies of the same libraries.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from converters.foreign_text import plain_text
from converters.machine import (
    memory_limit,
    processes_killed_for_memory,
    resident_bytes,
    return_memory,
)
from edgekit.errors import ConversionError, EdgekitError, MissingExtraError

# The functions that a child can run. Other names are refused.
FUNCTIONS = {
    "export_source": "converters.frontends.tensorflow.side:export_source",
    "described": "converters.frontends.tensorflow.side:described",
    "direct": "converters.frontends.tensorflow.direct:direct",
    "answers": "converters.frontends.tensorflow.side:answers",
    "lower": "converters.lowering.tflite:lower",
    "distill": "converters.training.distill:distill",
    "find_loop": "converters.training.own_function:find_loop",
    "run_loop": "converters.training.own_loop:run_loop",
    "export_program": "converters.frontends.torch.side:export_program",
    "program_is_loaded": "converters.frontends.torch.side:program_is_loaded",
    "program_answers": "converters.frontends.torch.side:program_answers",
    "try_litert": "converters.first_runs:litert",
    "try_onnx": "converters.first_runs:onnx",
    "open_onnx": "converters.source_sessions:open_onnx",
    "open_litert": "converters.source_sessions:open_litert",
    "run_source": "converters.source_sessions:run",
    "close_source": "converters.source_sessions:close",
}
# Modules that a child imports, and the extra that installs each. Any other missing module is a fault of edgekit.
EXTRAS = {"tensorflow": "convert", "keras": "convert", "tf2onnx": "convert", "torch": "torch", "onnxscript": "torch"}
# What each function does, for messages.
WORK = {
    "export_source": "reading the model",
    "described": "reading the model",
    "direct": "converting the source model to LiteRT",
    "answers": "running the source model",
    "lower": "converting the graph to LiteRT",
    "distill": "training a pruned graph",
    "find_loop": "importing the training loop {name}",
    "run_loop": "running the training loop {name}",
    "export_program": "reading the torch.export program",
    "program_is_loaded": "running the torch.export program",
    "program_answers": "running the torch.export program",
    "try_litert": "loading and running {name}",
    "try_onnx": "loading and running {name}",
    "open_onnx": "loading the source model",
    "open_litert": "loading the source model",
    "run_source": "running the source model",
    "close_source": "closing the source model",
}
LOG_TAIL_LINES = 40
WATCH_SECONDS = 0.5
MOST_HELD_BYTES = 1 << 30  # of an idle child; one that has imported TensorFlow holds 0.6 GB
MOST_HELD_BY_TORCH = 1 << 29  # which only reads and runs source models; it holds 0.4 GB after the import
SHORT_SECONDS = 0.2  # of a call that leaves little memory behind
_Child = TypeVar("_Child", bound="FrameworkProcess")


class FrameworkOutputError(Exception):
    """Output of a framework. It is the cause of an error, and so it is printed only with tracebacks (--verbose)."""


class FrameworkProcess:
    """One child process with one framework in it; use it as a context manager. Not safe for concurrent calls.

    Args:
        framework: Its name, for messages.
        show_log: Send the framework's output to stderr at once, instead of to a log that only tracebacks show.
        memory_bytes: The most memory that the child may use; 0 for what is free when it starts. Only on Linux.
    """

    def __init__(self, framework: str, *, show_log: bool = False, memory_bytes: int = 0) -> None:
        self._framework = framework
        self._show_log = show_log
        self._memory_bytes = memory_bytes
        self._limit = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Any = None

    def call(self, function: str, **arguments: Any) -> Any:
        """Run one of FUNCTIONS in the child and return its result; starts the child on first use.

        Raises:
            EdgekitError: the function raised it.
            MissingExtraError: the framework is not installed.
            ConversionError: the function failed otherwise, or the child ended, and the next call starts another. The
                framework's log is the cause of the error, so only a traceback shows it.
        """
        if function not in FUNCTIONS:
            raise ValueError(f"{function!r} is not a function of the child")
        process, killed = self._started(), processes_killed_for_memory()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._kill)  # after Ctrl-C in the middle of an answer the pipe cannot be used again
            try:
                _send(process.stdin, (function, arguments))
                self._wait(process, WORK[function].format(**arguments))
                kind, value = _receive(process.stdout)
            # A child can end in the middle of an answer. Windows has other errors for that than BrokenPipeError.
            except (EOFError, OSError, pickle.UnpicklingError):
                raise self._ended(WORK[function].format(**arguments), killed) from FrameworkOutputError(self.log_tail())
            on_failure.pop_all()
        if kind == "result":
            return value
        if kind == "error":
            raise value from FrameworkOutputError(self.log_tail())
        kind, message, trace = value
        raise ConversionError(
            f"{self._framework} failed while {WORK[function].format(**arguments)} with {kind}",
            advice=f"Run again with --verbose (edgekit --verbose convert ...) for the output of {self._framework}.",
            foreign_text=message,
        ) from FrameworkOutputError(f"{trace}{self.log_tail()}")

    def _ended(self, work: str, killed_before: int) -> ConversionError:
        """The error for a child that ended during `work`; it blames memory only where the system killed for it."""
        ended = self._kill()
        doing = f"the {self._framework} process ended while {work}"
        if ended == "signal SIGKILL" and processes_killed_for_memory() > killed_before:
            return ConversionError(
                f"{doing}: the system ran out of memory and killed it",
                advice="Close other programs, or convert on a machine with more memory.",
            )
        return ConversionError(
            f"{doing}: {ended}",
            advice=f"{self._framework} ended without an error of its own; run again with --verbose "
            "(edgekit --verbose convert ...) for its output.",
        )

    def _wait(self, process: Any, work: str) -> None:
        """Wait for an answer, and end a child that uses too much memory: alone it would fill the machine.

        A limit of the system (RLIMIT_DATA) is no help: where an allocation fails, TensorFlow can go round for ever.
        """
        if sys.platform != "linux":
            return
        with selectors.DefaultSelector() as answer:  # select() fails past file descriptor 1023
            answer.register(process.stdout, selectors.EVENT_READ)
            while not answer.select(WATCH_SECONDS):
                if resident_bytes(process.pid) > self._limit:
                    raise ConversionError(
                        f"{work} needs more than the {self._limit / 2**30:.1f} GiB of memory that were free when the "
                        f"{self._framework} process started",
                        advice="Close other programs, or convert on a machine with more memory.",
                    )

    @property
    def runs(self) -> bool:
        """True between the first call and the end of the child."""
        return self._process is not None

    def log_tail(self) -> str:
        """The last lines of the framework's output; empty where there is none."""
        if self._log is None:
            return ""
        self._log.seek(0)
        lines = [line.rstrip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return "".join("\n  | " + line for line in lines[-LOG_TAIL_LINES:])

    def release(self, most_bytes: int = MOST_HELD_BYTES) -> None:
        """End the child if it holds more than `most_bytes`; the next call starts another one, which takes seconds.

        A framework keeps the model that it has read, and parts of what it made of it: 1.7 GB after one of 100 MB.
        """
        if self._process is not None and resident_bytes(self._process.pid) > most_bytes:
            self._kill()

    def close(self) -> None:
        """End the child, if it runs."""
        self._kill()
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self: _Child) -> _Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            if not self._show_log:
                self._log = self._log or tempfile.TemporaryFile(prefix="edgekit-child-")  # noqa: SIM115 - lives until close
            quiet = {
                "PYTHONHASHSEED": "0",  # tf2onnx numbers tensors in the order of sets
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "TF_ENABLE_ONEDNN_OPTS": "0",
                "CUDA_VISIBLE_DEVICES": "-1",
            }
            self._limit = self._memory_bytes or memory_limit()
            path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from converters.framework_process import main; main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **quiet, "PYTHONPATH": path.rstrip(os.pathsep)},
            )
        return self._process

    def _kill(self) -> str:
        """Kill and reap the child. Returns how it ended."""
        if self._process is None:
            return "not running"
        process, self._process = self._process, None
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(OSError):  # it ended with unread input; the pipe is closed anyway
                    pipe.close()
        # A child that ended by itself has an exit status shortly after its pipe broke.
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        code = process.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class TensorFlowProcess(FrameworkProcess):
    """TensorFlow's process, and PyTorch's process from its first call on."""

    def __init__(self, *, show_log: bool = False) -> None:
        super().__init__("TensorFlow", show_log=show_log)
        self._torch = FrameworkProcess("PyTorch", show_log=show_log)

    def call(self, function: str, **arguments: Any) -> Any:
        """Run one of FUNCTIONS in its framework's process. Raises as `FrameworkProcess.call`."""
        if ".torch." in FUNCTIONS.get(function, ""):
            return self._torch.call(function, **arguments)
        return super().call(function, **arguments)

    def release(self, most_bytes: int = MOST_HELD_BYTES) -> None:
        """As `FrameworkProcess.release`, for both processes; PyTorch's may hold MOST_HELD_BY_TORCH."""
        self._torch.release(min(most_bytes, MOST_HELD_BY_TORCH))
        super().release(most_bytes)

    def close(self) -> None:
        """End both processes, if they run."""
        self._torch.close()
        super().close()


class _Pipe:
    """A pipe to unpickle from. It has no `peek`: with it, an unpickler would wait for a part of the next message."""

    def __init__(self, stream: Any) -> None:
        self.read, self.readinto, self.readline = stream.read, stream.readinto, stream.readline


def _send(stream: Any, value: Any) -> None:
    pickle.dump(value, stream, protocol=pickle.HIGHEST_PROTOCOL)  # models go into the pipe without another copy
    stream.flush()


def _receive(stream: Any) -> Any:
    return pickle.load(_Pipe(stream))  # noqa: S301 - both ends are this program; no file is read this way


# --- in the child process


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    while True:
        try:
            name, arguments = _receive(requests)
        except EOFError:
            return
        began = time.monotonic()
        _send(replies, _answer(name, arguments))
        del arguments
        if time.monotonic() - began > SHORT_SECONDS:  # the search for cycles takes longer than many calls
            gc.collect()
            return_memory()


def _find(name: str) -> Callable[..., Any]:
    module, _, attribute = FUNCTIONS[name].partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _answer(name: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "result", _find(name)(**arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            return "unexpected", _unexpected(error)
        return "error", MissingExtraError(missing, EXTRAS[missing])
    except EdgekitError as error:
        return "error", error
    except Exception as error:  # process boundary: the parent raises a ConversionError with this child's log
        return "unexpected", _unexpected(error)


def _unexpected(error: Exception) -> tuple[str, str, str]:
    """The kind of an error, its message, and where it was raised."""
    return type(error).__name__, plain_text(error), traceback.format_exc()


def main() -> None:
    """Serve calls until the parent ends. Output of libraries to stdout goes to stderr, and so to the parent's log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, replies)
