"""Source models in their runtimes, in the processes that converters/trials.py starts. Imports only the runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import ConversionError
from edgekit.tensors import Array

_sessions: dict[int, Any] = {}  # by the number that the parent gave


def open_onnx(number: int, data: bytes) -> None:
    """Load an ONNX model under a number. Raises as `OnnxRuntime`."""
    from edgekit.runtimes.onnx import OnnxRuntime

    _sessions[number] = OnnxRuntime(data, threads=1, quiet=True)


def open_litert(number: int, path: str) -> None:
    """Load a .tflite under a number. Raises as `LiteRTRuntime`."""
    from edgekit.runtimes.litert import LiteRTRuntime

    _sessions[number] = LiteRTRuntime(Path(path))


def run(number: int, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the model of a number.

    Raises:
        ConversionError: it is not loaded: the process that had it has ended.
        RuntimeLoadError, DataError: as its runtime.
    """
    if number not in _sessions:
        raise ConversionError("the process that had the source model in memory has ended", advice="Convert again.")
    answers: dict[str, Array] = _sessions[number].run(inputs)
    return answers


def close(number: int) -> None:
    """Forget the model of a number, if it is loaded."""
    session = _sessions.pop(number, None)
    if session is not None:
        session.close()
