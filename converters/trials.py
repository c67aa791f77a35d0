"""Runs what may end its process in processes of their own: each new artifact for the first time, and source models.

One process for each runtime is started when it is first needed, serves all conversions of this process, and ends with
it. After a crash the next call starts another. The price of a trial is one load and a few runs of the artifact.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.framework_process import FrameworkProcess
from edgekit.tensors import Array

CALIBRATION = "calibration"  # kernels that keep the values of every tensor

_lock = threading.Lock()
_numbers = itertools.count()  # of source sessions
_processes: dict[str, FrameworkProcess] = {}


def try_litert(name: str, path: Path, *, like: Path | None = None, kernels: str = "") -> None:
    """Load and run the .tflite at `path`; where `like` is another file, its answers must be equal bit by bit.

    Args:
        name: What the file is, for messages: ``candidate int8``.
        path: The file.
        like: A file that must answer the same.
        kernels: Kernels of `LiteRTRuntime`, or `CALIBRATION`; empty for the device's.

    Raises:
        ConversionError: LiteRT ended its process; the message names the file and the signal.
        RuntimeLoadError: LiteRT refuses the file.
        ParityError: the answers differ.
    """
    _call("LiteRT", "try_litert", name=name, path=str(path), like=str(like or ""), kernels=kernels)


def try_onnx(name: str, data: bytes) -> None:
    """Load and run an ONNX model.

    Raises:
        ConversionError: ONNX Runtime ended its process; the message names the model and the signal.
        RuntimeLoadError: ONNX Runtime refuses the model.
    """
    _call("ONNX Runtime", "try_onnx", name=name, data=data)


class SourceSession:
    """A source model in the process of its runtime; use it as a context manager.

    Args:
        model: The bytes of an ONNX model, or the path of a .tflite.

    Raises:
        ConversionError: the runtime ended its process; the message has the signal.
        RuntimeLoadError: the runtime refuses the model.
    """

    def __init__(self, model: bytes | Path) -> None:
        self._runtime, self._number = ("LiteRT" if isinstance(model, Path) else "ONNX Runtime"), next(_numbers)
        if isinstance(model, Path):
            _call(self._runtime, "open_litert", number=self._number, path=str(model))
        else:
            _call(self._runtime, "open_onnx", number=self._number, data=model)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for `inputs`, both by name. Raises as the constructor."""
        answers: dict[str, Array] = _call(self._runtime, "run_source", number=self._number, inputs=dict(inputs))
        return answers

    def __enter__(self) -> SourceSession:
        return self

    def __exit__(self, *_: object) -> None:
        if _processes[self._runtime].runs:  # otherwise the session has ended with its process
            _call(self._runtime, "close_source", number=self._number)


def close() -> None:
    """End the processes, if they run."""
    with _lock:
        for process in _processes.values():
            process.close()
        _processes.clear()


def _call(runtime: str, function: str, **arguments: object) -> Any:
    with _lock:
        if runtime not in _processes:
            _processes[runtime] = FrameworkProcess(runtime)
        return _processes[runtime].call(function, **arguments)


def _forget() -> None:
    """In a forked process: the processes belong to the parent, and another thread may hold the lock."""
    global _lock
    _lock = threading.Lock()
    _processes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
