"""The chosen artifact through every runtime that is installed here, beside the float model and the device's answers.

What is promised bit by bit was measured first: sums of integers are exact, in any order and on any number of threads.
Other kernels than the device's round elsewhere, and sums of floats depend on their order: of those the difference is
told.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx

from converters.backends import Artifact
from converters.cache import this_processor
from converters.cost.estimate import WEIGHTED
from converters.quality.parity import Parity, beside_device, compare
from converters.report.report import Contents
from edgekit.bundle.bindings import Binding, Joined
from edgekit.bundle.recipe import STATIC, Recipe
from edgekit.errors import ParityError, RuntimeLoadError
from edgekit.runtimes import LITERT, LogicalRuntime, RawRuntime
from edgekit.runtimes.litert import BUILTIN, REFERENCE, XNNPACK, LiteRTRuntime
from edgekit.runtimes.onnx import X86_64, OnnxRuntime
from edgekit.tensors import Array

ROWS = 32
WORK = 400_000_000  # multiply-adds that one way is given at most: about a second of the slowest kernels

FOUR_BITS = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


class Way(msgspec.Struct, frozen=True):
    """One way to run an artifact.

    Attributes:
        runtime: Library and version.
        where: Machine, kernels and threads, in words.
        open: Loads it there.
        promised: Its answers are the device's own, bit by bit, or there is a fault.
    """

    runtime: str
    where: str
    open: Callable[[], RawRuntime]
    promised: bool = False


class Matrix(NamedTuple):
    """What was seen of each way that could be taken, and a sentence for each other one."""

    parity: tuple[Parity, ...]
    left: tuple[str, ...]


def matrix(
    artifact: Artifact,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    *,
    exact: bool,
    macs: int,
    decision: str,
    folder: Path,
) -> Matrix:
    """Run the first rows of `inputs` (N, ...) in every way; the device's own is the first.

    Kernels that a device does not use may lack an operator, or fail at it: that is told.

    Args:
        artifact: The chosen one.
        inputs: Logical inputs, real ones where there are any.
        expected: The float model's answers to them (N, ...).
        exact: As `sums_exactly`; the same bits are promised for any number of threads then.
        macs: Multiply-adds of one row; of large models fewer rows are run.
        decision: The output that holds scores, or empty.
        folder: Where the artifact can be written.

    Raises:
        ParityError: bits differ where they are promised to be the same, or the device's answers are undefined.
        RuntimeLoadError: the device's runtime cannot run the artifact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / artifact.file
    path.write_bytes(artifact.data)
    rows = max(1, min(ROWS, WORK // max(macs, 1)))
    given = {name: value[:rows] for name, value in inputs.items()}
    wanted = {name: value[:rows] for name, value in expected.items()}
    steps = {binding.spec.name: _step(binding) for binding in artifact.outputs}
    scales = {name: step for name, step in steps.items() if step is not None}
    found: list[Parity] = []
    answers: dict[str, Array] = {}  # the device's own
    ways = _litert(path, exact) if artifact.runtime == LITERT else _onnx(path, exact)
    if artifact.runtime == LITERT and not artifact.runtime_version:  # a bundle that asks for more refuses it
        ways += _tflite_runtime(path)
    left: list[str] = []
    for way in ways:
        try:
            answer = _run(artifact, way, given)
            seen = compare(wanted, answer, runtime=way.runtime, where=way.where, decision=decision)
        except (RuntimeLoadError, ParityError) as error:
            if way.promised or not answers:
                raise
            left.append(f"{way.runtime} ({way.where}) cannot run it: {error}")
            continue
        answers = answers or answer
        beside = beside_device(
            answers,
            answer,
            runtime=way.runtime,
            where=way.where,
            decision=decision,
            scales=scales,
            promised=way.promised,
        )
        found.append(msgspec.structs.replace(seen, rows=len(next(iter(given.values()))), device=beside))
    return Matrix(tuple(found), tuple(left))


def _step(binding: Binding) -> float | Array | None:
    """Real value of one step of an output; of one in parts, along their axis. None where it is float in the file."""
    if not isinstance(binding.joined, Joined):
        return binding.scale
    axis, rank = binding.joined.axis, len(binding.spec.shape)
    found = [np.full(part.spec.shape[axis] or 0, part.scale) for part in binding.parts if part.scale is not None]
    shape = [-1 if place == axis else 1 for place in range(rank)]
    return np.concatenate(found).reshape(shape) if len(found) == len(binding.parts) else None


def sums_exactly(artifact: Artifact, recipe: Recipe, contents: Contents) -> bool:
    """True where every layer with weights sums integers, and kernels that are known to take them do.

    LiteRT's built-in kernels are not among those: some choose another algorithm where there are more threads.
    """
    if recipe.precision != STATIC or recipe.float_layers:
        return False
    return contents.delegated if artifact.runtime == LITERT else _sums_integers(artifact.data)


def _sums_integers(data: bytes) -> bool:
    """What ONNX Runtime can fuse to an integer kernel: both operands dequantized, weights of 8 bits."""
    graph = onnx.load_from_string(data).graph
    makers = {name: node for node in graph.node for name in node.output}
    kinds = {one.name: one.data_type for one in graph.initializer}
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        behind = [makers.get(name) for name in node.input[:2]]
        if any(maker is None or maker.op_type != "DequantizeLinear" for maker in behind):
            return False
        if any(maker is not None and kinds.get(maker.input[0]) in FOUR_BITS for maker in behind):
            return False
    return True


def _run(artifact: Artifact, way: Way, inputs: Mapping[str, Array]) -> dict[str, Array]:
    runtime = LogicalRuntime(way.open(), artifact.inputs, artifact.outputs)
    try:
        return runtime.run(inputs)
    finally:
        runtime.close()


def _litert(path: Path, exact: bool) -> list[Way]:
    def way(where: str, *, threads: int = 1, kernels: str = XNNPACK, promised: bool = False) -> Way:
        opened = functools.partial(LiteRTRuntime, path, threads=threads, kernels=kernels)
        return Way(name, f"{platform.machine()}, {where}", opened, promised)

    name = _version("LiteRT", "ai-edge-litert")
    return [
        way("XNNPACK, as the device"),
        way("XNNPACK, 2 threads", threads=2, promised=exact),
        way("built-in kernels", kernels=BUILTIN),
        way("built-in kernels, 2 threads", kernels=BUILTIN, threads=2),
        way("reference kernels", kernels=REFERENCE),
    ]


def _tflite_runtime(path: Path) -> list[Way]:
    """Nothing where it is not installed. It needs numpy 1, as edgekit[tflite-runtime] asks: elsewhere it cannot be."""
    if importlib.util.find_spec("tflite_runtime") is None:
        return []
    library = importlib.import_module("tflite_runtime.interpreter")
    name = _version("tflite-runtime", "tflite-runtime")
    opened = functools.partial(LiteRTRuntime, path, interpreter=library.Interpreter)
    return [Way(name, f"{platform.machine()}, XNNPACK", opened)]


def _onnx(path: Path, exact: bool) -> list[Way]:
    def way(where: str, *, promised: bool = False, **choices: Any) -> Way:
        return Way(name, f"{platform.machine()}, {where}", functools.partial(OnnxRuntime, path, **choices), promised)

    name = _version("ONNX Runtime", "onnxruntime", "onnxruntime-gpu")
    ways = [
        way("CPU, as the device"),
        way("CPU, 2 threads", threads=2, promised=exact),
        way("CPU, graph as it is", optimize=False),
    ]
    if platform.machine().lower() in X86_64:
        saturates = "" if "vnni" in this_processor() else ": sums saturate"
        ways.append(way(f"CPU, careless: session.x64quantprecision off{saturates}", exact=False))
    return ways


def _version(name: str, *packages: str) -> str:
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(package)}"
    return name
