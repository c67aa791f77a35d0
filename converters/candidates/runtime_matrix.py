"""Runs the chosen artifact on every installed runtime and compares with the float model and the device's runtime.

Equal bits are promised where sums are sums of integers, which are exact in any order and on any number of threads.
Other kernels may round at other points, and sums of floats depend on their order; for those the difference is reported.
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
from converters.quality.parity import Parity, compare, compare_with_device
from converters.report.report import ArtifactContents
from converters.trials import try_litert
from edgekit.bundle.bindings import Binding, Joined
from edgekit.bundle.recipe import STATIC, Recipe
from edgekit.bundle.sample_rows import run_samples
from edgekit.errors import ConversionError, RuntimeLoadError
from edgekit.runtimes import LITERT, LogicalRuntime, RawRuntime
from edgekit.runtimes.litert import BUILTIN, REFERENCE, XNNPACK, LiteRTRuntime
from edgekit.runtimes.onnx import X86_64, OnnxRuntime
from edgekit.tensors import Array

VARIANT_ROWS = 32
MAX_MACS = 400_000_000  # largest number of multiply-adds of one variant: about a second of the slowest kernels

FOUR_BITS = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


class RuntimeVariant(msgspec.Struct, frozen=True):
    """One way to run an artifact.

    Attributes:
        runtime: Library and version.
        where: Description of machine, kernels and threads.
        open: Loads the artifact.
        promised: Its answers must be bit by bit those of the device's runtime.
    """

    runtime: str
    where: str
    open: Callable[[], RawRuntime]
    promised: bool = False


class RuntimeMatrix(NamedTuple):
    """The comparison of each variant that ran, and one sentence for each variant that failed."""

    parity: tuple[Parity, ...]
    failures: tuple[str, ...]


def run_variants(
    artifact: Artifact,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    *,
    exact: bool,
    macs: int,
    decision: str,
    folder: Path,
) -> RuntimeMatrix:
    """Run the first rows of `inputs` (N, ...) with every variant; the first variant is the device's runtime.

    Kernels that devices do not use may fail or lack an operator: the failure is reported.

    Args:
        artifact: The chosen artifact.
        inputs: Logical inputs, from the data or random.
        expected: The float model's answers to `inputs` (N, ...).
        exact: Result of `sums_exactly`; equal bits are then promised for any number of threads.
        macs: Multiply-adds of one row; fewer rows of large models are run.
        decision: Name of the output that holds class scores; empty without classes.
        folder: Scratch folder.

    Raises:
        ParityError: bits differ where equal bits are promised, or the device's answers are undefined.
        RuntimeLoadError: the device's runtime cannot run the artifact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / artifact.file
    path.write_bytes(artifact.data)
    rows = max(1, min(VARIANT_ROWS, MAX_MACS // max(macs, 1)))
    run_inputs = {name: value[:rows] for name, value in inputs.items()}
    run_expected = {name: value[:rows] for name, value in expected.items()}
    steps = {binding.spec.name: _step(binding) for binding in artifact.outputs}
    scales = {name: step for name, step in steps.items() if step is not None}
    compared: list[Parity] = []
    device_answers: dict[str, Array] = {}
    variants = _litert(path, exact) if artifact.runtime == LITERT else _onnx(path, exact)
    if artifact.runtime == LITERT and not artifact.runtime_version:  # tflite-runtime is too old for other artifacts
        variants += _tflite_runtime(path)
    failures: list[str] = []
    for variant in variants:
        try:
            answers = _run(artifact, variant, run_inputs)
            parity = compare(run_expected, answers, runtime=variant.runtime, where=variant.where, decision=decision)
        except (ConversionError, RuntimeLoadError) as error:  # a ParityError is a ConversionError
            if variant.promised or not device_answers:
                raise
            failures.append(f"{variant.runtime} ({variant.where}) cannot run the artifact: {error}")
            continue
        device_answers = device_answers or answers
        difference = compare_with_device(
            device_answers,
            answers,
            runtime=variant.runtime,
            where=variant.where,
            decision=decision,
            scales=scales,
            promised=variant.promised,
        )
        compared.append(msgspec.structs.replace(parity, rows=len(next(iter(run_inputs.values()))), device=difference))
    return RuntimeMatrix(tuple(compared), tuple(failures))


def _step(binding: Binding) -> float | Array | None:
    """Real value of one integer step of an output; an array where parts differ, None where the output is float."""
    if not isinstance(binding.joined, Joined):
        return binding.scale
    axis, rank = binding.joined.axis, len(binding.spec.shape)
    steps = [np.full(part.spec.shape[axis] or 0, part.scale) for part in binding.parts if part.scale is not None]
    shape = [-1 if index == axis else 1 for index in range(rank)]
    return np.concatenate(steps).reshape(shape) if len(steps) == len(binding.parts) else None


def sums_exactly(artifact: Artifact, recipe: Recipe, contents: ArtifactContents) -> bool:
    """True where every layer with weights sums integers, in kernels whose results do not depend on the threads.

    LiteRT's built-in kernels are not among these: some choose another algorithm for more threads.
    """
    if recipe.precision != STATIC or recipe.float_layers:
        return False
    return contents.delegated if artifact.runtime == LITERT else _sums_integers(artifact.data)


def _sums_integers(data: bytes) -> bool:
    """True where ONNX Runtime fuses each layer to an integer kernel: both operands dequantized, weights of 8 bits."""
    graph = onnx.load_from_string(data).graph
    makers = {name: node for node in graph.node for name in node.output}
    kinds = {one.name: one.data_type for one in graph.initializer}
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        producers = [makers.get(name) for name in node.input[:2]]
        if any(maker is None or maker.op_type != "DequantizeLinear" for maker in producers):
            return False
        if any(maker is not None and kinds.get(maker.input[0]) in FOUR_BITS for maker in producers):
            return False
    return True


def _run(artifact: Artifact, variant: RuntimeVariant, inputs: Mapping[str, Array]) -> dict[str, Array]:
    runtime = LogicalRuntime(variant.open(), artifact.inputs, artifact.outputs)
    try:
        return run_samples(runtime.run, runtime.inputs, runtime.outputs, inputs)
    finally:
        runtime.close()


def _open_litert(path: Path, *, threads: int, kernels: str) -> LiteRTRuntime:
    """Open the file. Kernels that it has not run on may end their process, so they run it in another one first."""
    if kernels != XNNPACK:
        try_litert(f"the artifact with LiteRT's {kernels} kernels", path, kernels=kernels)
    return LiteRTRuntime(path, threads=threads, kernels=kernels)


def _litert(path: Path, exact: bool) -> list[RuntimeVariant]:
    def variant(where: str, *, threads: int = 1, kernels: str = XNNPACK, promised: bool = False) -> RuntimeVariant:
        opened = functools.partial(_open_litert, path, threads=threads, kernels=kernels)
        return RuntimeVariant(name, f"{platform.machine()}, {where}", opened, promised)

    name = _version("LiteRT", "ai-edge-litert")
    return [
        variant("XNNPACK, as on the device"),
        variant("XNNPACK, 2 threads", threads=2, promised=exact),
        variant("built-in kernels", kernels=BUILTIN),
        variant("built-in kernels, 2 threads", kernels=BUILTIN, threads=2),
        variant("reference kernels", kernels=REFERENCE),
    ]


def _tflite_runtime(path: Path) -> list[RuntimeVariant]:
    """Empty where tflite-runtime is not installed. It needs numpy 1 (the extra edgekit[tflite-runtime])."""
    if importlib.util.find_spec("tflite_runtime") is None:
        return []
    library = importlib.import_module("tflite_runtime.interpreter")
    name = _version("tflite-runtime", "tflite-runtime")
    opened = functools.partial(LiteRTRuntime, path, interpreter=library.Interpreter)
    return [RuntimeVariant(name, f"{platform.machine()}, XNNPACK", opened)]


def _onnx(path: Path, exact: bool) -> list[RuntimeVariant]:
    def variant(where: str, *, promised: bool = False, **choices: Any) -> RuntimeVariant:
        return RuntimeVariant(
            name, f"{platform.machine()}, {where}", functools.partial(OnnxRuntime, path, **choices), promised
        )

    name = _version("ONNX Runtime", "onnxruntime", "onnxruntime-gpu")
    variants = [
        variant("CPU, as on the device"),
        variant("CPU, 2 threads", threads=2, promised=exact),
        variant("CPU, graph not optimized", optimize=False),
    ]
    if platform.machine().lower() in X86_64:
        saturates = "" if "vnni" in this_processor() else ": sums saturate"
        variants.append(variant(f"CPU, session.x64quantprecision off{saturates}", exact=False))
    return variants


def _version(name: str, *packages: str) -> str:
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(package)}"
    return name
