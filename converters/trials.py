"""Runs each new artifact for the first time in a process of its own, because a fault in a runtime can end its process.

One process for each runtime is started when it is first needed, serves all conversions of this process, and ends with
it. After a crash the next trial starts another. The price of a trial is one load and a few runs of the artifact.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from converters.framework_process import FrameworkProcess

CALIBRATION = "calibration"  # kernels that keep the values of every tensor

_lock = threading.Lock()
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


def close() -> None:
    """End the processes, if they run."""
    with _lock:
        for process in _processes.values():
            process.close()
        _processes.clear()


def _call(runtime: str, function: str, **arguments: object) -> None:
    with _lock:
        if runtime not in _processes:
            _processes[runtime] = FrameworkProcess(runtime)
        _processes[runtime].call(function, **arguments)


def _forget() -> None:
    """In a forked process: the processes belong to the parent, and another thread may hold the lock."""
    global _lock
    _lock = threading.Lock()
    _processes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
