"""First runs of artifacts, in the processes that converters/trials.py starts. This file imports only the runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgekit.errors import ParityError, RuntimeLoadError
from edgekit.runtimes.litert import XNNPACK, LiteRTRuntime
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array, TensorSpec

CALIBRATION = "calibration"  # kernels that keep the values of every tensor
TRIALS, SEED = 3, 7


def litert(name: str, path: str, like: str, kernels: str) -> None:
    """Load and run a .tflite. See `converters.trials.try_litert`; only messages use `name`."""
    if like:
        require_equal(Path(like), Path(path))
    elif kernels == CALIBRATION:
        _try_calibration(Path(path))
    else:
        _run_once(LiteRTRuntime(Path(path), kernels=kernels or XNNPACK))


def onnx(name: str, data: bytes) -> None:
    """Load and run an ONNX model. See `converters.trials.try_onnx`; only messages use `name`."""
    _run_once(OnnxRuntime(data, threads=1))


def _run_once(runtime: Any) -> None:
    rng = np.random.default_rng(SEED)
    runtime.run({spec.name: noise_of(spec, rng) for spec in runtime.inputs})
    runtime.close()


def open_keeping_tensors(path: Path) -> Any:
    """An interpreter of plain kernels that keeps the values of all tensors, for calibration."""
    interpreter = Interpreter(
        model_path=str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return interpreter


def _try_calibration(path: Path) -> None:
    try:
        runner: Any = open_keeping_tensors(path).get_signature_runner()
        runner(**{name: np.zeros(one["shape"], one["dtype"]) for name, one in runner.get_input_details().items()})
    except (ValueError, RuntimeError) as error:
        raise RuntimeLoadError(f"LiteRT's plain kernels cannot run {path.name}: {error}") from error


def require_equal(before: Path, after: Path) -> None:
    """Run both files on the same seeded inputs.

    Raises:
        ParityError: a bit of an answer differs.
    """
    first, second = LiteRTRuntime(before), LiteRTRuntime(after)
    try:
        rng = np.random.default_rng(SEED)
        for _ in range(TRIALS):
            inputs = {spec.name: noise_of(spec, rng) for spec in first.inputs}
            expected, answers = first.run(inputs), second.run(inputs)
            for name, value in expected.items():
                if value.tobytes() != answers[name].tobytes():
                    raise ParityError(f"step strip changed output {name} of {before.name}, expected equal bits")
    finally:
        first.close()
        second.close()


def noise_of(spec: TensorSpec, rng: Any) -> Array:
    """Random values for an input; free sizes are 1."""
    shape, dtype = [size or 1 for size in spec.shape], spec.dtype.numpy
    if dtype.kind == "f":
        return np.asarray(rng.normal(0, 1, shape), dtype=dtype)
    whole = dtype.kind != "b" and dtype.itemsize == 1
    least, most = (np.iinfo(dtype).min, np.iinfo(dtype).max) if whole else (0, 1)
    return np.asarray(rng.integers(least, most, shape, endpoint=True), dtype=dtype)
