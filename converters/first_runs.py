"""First runs of artifacts, in the processes that converters/trials.py starts. This file imports only the runtimes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgekit.errors import ConversionError, ParityError, RuntimeLoadError
from edgekit.runtimes.litert import XNNPACK, LiteRTRuntime
from edgekit.runtimes.litert_messages import text_of
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array, TensorSpec

CALIBRATION = "calibration"  # kernels that keep the values of every tensor
TRIALS, SEED = 3, 7
# LiteRT's messages where a whole number is divided by 0, and that of its DIV.
_BY_ZERO = re.compile(r"(division|modulo) by (0|zero)|zero_point does not hold", re.IGNORECASE)


def litert(name: str, path: str, like: str, kernels: str) -> None:
    """Load and run a .tflite. See `converters.trials.try_litert`; only messages use `name`."""
    if like:
        require_weights_kept(Path(path))
        require_equal(Path(like), Path(path))
    elif kernels == CALIBRATION:
        _try_calibration(Path(path))
    else:
        _run_once(LiteRTRuntime(Path(path), kernels=kernels or XNNPACK))


def onnx(name: str, data: bytes) -> None:
    """Load and run an ONNX model. See `converters.trials.try_onnx`; only messages use `name`."""
    _run_once(OnnxRuntime(data, threads=1))


def _run_once(runtime: Any) -> None:
    _trial(lambda least: runtime.run(_noise(runtime, np.random.default_rng(SEED), least)))
    runtime.close()


def _trial(run: Callable[[int], None]) -> None:
    """Call `run` with the least whole number of the inputs: 0, or 1 where the model divides by them."""
    try:
        run(0)
    except RuntimeLoadError as error:
        if not _BY_ZERO.search(str(error)):
            raise
        run(1)


def _noise(runtime: Any, rng: Any, least: int = 0) -> dict[str, Array]:
    return {spec.name: noise_of(spec, rng, least) for spec in runtime.inputs}


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
    def run(least: int) -> None:
        try:
            runner: Any = open_keeping_tensors(path).get_signature_runner()
            inputs = runner.get_input_details().items()
            runner(**{name: np.full(one["shape"], least, one["dtype"]) for name, one in inputs})
        except (ValueError, RuntimeError) as error:
            raise RuntimeLoadError(f"LiteRT's plain kernels cannot run {path.name}: {text_of(error)}") from error

    _trial(run)


def require_equal(before: Path, after: Path) -> None:
    """Run both files on the same seeded inputs.

    Raises:
        ParityError: a bit of an answer differs.
    """
    first, second = LiteRTRuntime(before), LiteRTRuntime(after)
    try:
        _trial(lambda least: _require_equal_runs(first, second, before.name, least))
    finally:
        first.close()
        second.close()


def require_weights_kept(path: Path) -> None:
    """Check that no weights which LiteRT unpacks are read after a loop whose outputs have computed sizes.

    After such a loop LiteRT plans the memory of the graph anew. Weights that XNNPACK unpacked before it (float16 and
    integers behind a DEQUANTIZE) then have other values in later runs, in some processes and not in others.

    Raises:
        ConversionError: weights are read there.
    """
    interpreter: Any = Interpreter(
        model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    unpacked, after_loop = set[int](), False
    for operator in interpreter._get_ops_details():  # the library has no public list of operators
        inputs = [int(index) for index in operator["inputs"]]
        if after_loop and unpacked.intersection(inputs):
            raise ConversionError(
                "weights of float16 or integers are read after a loop whose outputs have computed sizes: "
                "LiteRT answers differently from run to run there"
            )
        if operator["op_name"] == "DEQUANTIZE" and _has_memory(interpreter, inputs[0]):
            unpacked.update(int(index) for index in operator["outputs"])
        outputs = [int(index) for index in operator["outputs"] if index >= 0]
        after_loop = after_loop or (
            operator["op_name"] == "WHILE" and not all(_has_memory(interpreter, index) for index in outputs)
        )


def _has_memory(interpreter: Any, index: int) -> bool:
    """True if a tensor has memory before the first run; without, its size is computed in a run."""
    try:
        interpreter.get_tensor(index)
    except ValueError:
        return False
    return True


def _require_equal_runs(first: Any, second: Any, before: str, least: int) -> None:
    rng = np.random.default_rng(SEED)
    for _ in range(TRIALS):
        inputs = _noise(first, rng, least)
        expected, answers = first.run(inputs), second.run(inputs)
        for name, value in expected.items():
            if value.tobytes() != answers[name].tobytes():
                raise ParityError(f"step strip changed output {name} of {before}, expected equal bits")


def noise_of(spec: TensorSpec, rng: Any, lowest: int = 0) -> Array:
    """Random values for an input; free sizes are 1. Whole numbers other than bytes are `lowest` or 1."""
    shape, dtype = [size or 1 for size in spec.shape], spec.dtype.numpy
    if dtype.kind == "f":
        return np.asarray(rng.normal(0, 1, shape), dtype=dtype)
    whole = dtype.kind != "b" and dtype.itemsize == 1
    least, most = (np.iinfo(dtype).min, np.iinfo(dtype).max) if whole else (lowest, 1)
    return np.asarray(rng.integers(least, most, shape, endpoint=True), dtype=dtype)
