"""The process that is measured: reads jobs from stdin, one a line, and answers each with a line.

This machine's Python runs it with ``python -m``, or an emulated aarch64 one. What libraries print goes to stderr.
"""

from __future__ import annotations

import gc
import importlib.metadata
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from converters.cost.measuring.counters import Counter, emulated_counter, kernel_counter
from converters.cost.measuring.layers import LayersError, litert_layers, onnx_layers
from converters.cost.measuring.messages import EMULATED, Job, Layer, Outcome
from edgekit.bundle.golden import read_golden
from edgekit.errors import EdgekitError
from edgekit.runtimes import LITERT
from edgekit.runtimes.model_memory import ModelMemory
from edgekit.tensors import Array

SAME, MOST_REPEATS = 1e-3, 6  # share by which two counts may differ, and counts that are made anew to find such ones
COUNTED_INSTRUCTIONS = 4e6  # runs are repeated up to about this many, so that one run's noise does not matter
MOST_RUNS = 64
FEWEST_TIMED = 20
WARM_UP_RUNS = 2  # the first ones still allocate
PACKAGES = ("ai-edge-litert", "onnxruntime", "numpy")


def measure(job: Job, counter: Counter | str, *, emulated: bool) -> Outcome:
    """Load and run one artifact.

    The count of a run is the difference between 2K and K runs, divided by K; so neither loading nor the first run is in
    it. Values are the same for every run. Where the two do not fit each other, both are counted again.

    Raises:
        EdgekitError: The artifact cannot be loaded or run.
    """
    inputs, _ = read_golden(Path(job.inputs).read_bytes())
    path = Path(job.path)
    _adapter(job.runtime)  # before the memory is read, because the library is not the model's
    memory = ModelMemory(path, emulated=emulated)
    runtime = _adapter(job.runtime)(path)
    call = runtime.repeated(inputs)
    for _ in range(WARM_UP_RUNS):
        call()
    outcome = Outcome(not_counted=counter) if isinstance(counter, str) else _count(call, counter)
    outcome = msgspec.structs.replace(outcome, memory_bytes=memory.peak(), versions=_versions())
    if job.seconds:
        outcome = msgspec.structs.replace(outcome, milliseconds=_times(call, job.seconds))
    runtime.close()
    if job.layers and emulated:
        try:
            layers = _layers(job, path, inputs)
            if job.runtime != LITERT:
                layers = without_profiler(layers, outcome.instructions or 0.0)
            outcome = msgspec.structs.replace(outcome, layers=tuple(layers))
        except LayersError as error:
            outcome = msgspec.structs.replace(outcome, no_layers=str(error))
    return outcome


def _adapter(runtime: str) -> Any:
    if runtime == LITERT:
        from edgekit.runtimes.litert import LiteRTRuntime

        return LiteRTRuntime
    from edgekit.runtimes.onnx import OnnxRuntime

    return OnnxRuntime


def _count(call: Callable[[], object], counter: Counter) -> Outcome:
    def counted(runs: int) -> int:
        before = counter()
        for _ in itertools.repeat(None, runs):
            call()
        return counter() - before

    once = counted(1)
    runs = max(min(math.ceil(COUNTED_INSTRUCTIONS / max(once, 1)), MOST_RUNS), 1)
    less = once if runs == 1 else counted(runs)
    best = less, counted(2 * runs)
    for _ in range(MOST_REPEATS):
        if _apart(*best) <= SAME * best[0]:
            break
        best = min(best, (counted(runs), counted(2 * runs)), key=lambda pair: _apart(*pair))
    return Outcome(instructions=(best[1] - best[0]) / runs, runs=runs)


def _apart(single: int, double: int) -> int:
    """How far twice as many runs are from twice the instructions: now and then a library does other work between."""
    return abs(double - 2 * single)


def _times(call: Callable[[], object], seconds: float) -> tuple[float, ...]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < FEWEST_TIMED:
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e3)
    return tuple(sorted(found))


def _layers(job: Job, path: Path, inputs: Mapping[str, Array]) -> list[Layer]:
    return litert_layers(path) if job.runtime == LITERT else onnx_layers(path, inputs)


def without_profiler(layers: list[Layer], instructions: float) -> list[Layer]:
    """The layers without the work of ONNX Runtime's profiler, which writes text within each node's own time.

    The work is about the same for each node: at most what all nodes together have beyond a run without a profiler, and
    at most the smallest node.
    """
    beyond = sum(layer.instructions for layer in layers) - instructions
    each = round(max(min(beyond / max(len(layers), 1), min(layer.instructions for layer in layers)), 0))
    return [msgspec.structs.replace(layer, instructions=layer.instructions - each) for layer in layers]


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def main() -> None:
    """Serve jobs until stdin ends."""
    emulated = EMULATED in sys.argv
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # the libraries' own output must not mix with answers
        counter = emulated_counter() if emulated else kernel_counter()
        for line in sys.stdin.buffer:
            gc.collect()
            gc.disable()  # it would run in the middle of a measurement
            try:
                outcome = measure(msgspec.json.decode(line, type=Job), counter, emulated=emulated)
            except EdgekitError as error:
                outcome = Outcome(fault=str(error))
            answers.write(msgspec.json.encode(outcome) + b"\n")
            answers.flush()
            gc.enable()


if __name__ == "__main__":
    main()
