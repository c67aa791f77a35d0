"""Runs of a model on its golden samples: the warm-up, and the measurement of whether joining requests pays."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.bundle.golden import read_golden, run_golden
from edgekit.bundle.manifest import ROLE_GOLDEN, Manifest
from edgekit.bundle.sample_rows import to_layout
from edgekit.bundle.state import state_links
from edgekit.errors import ArenaFullError, ManifestError
from edgekit.protocols import Runtime
from edgekit.sealing.opening import read_file
from edgekit.serving.session import batching
from edgekit.tensors import Array, DType

# Their values are neither places nor sizes, so that zeros cannot be wrong ones.
PLAIN = (DType.FLOAT16, DType.FLOAT32, DType.FLOAT64, DType.UINT8, DType.INT8)


def warm_up(runtime: Runtime, manifest: Manifest, folder: Path) -> None:
    """Run one row: zeros where every input has a PLAIN type, else the first golden row.

    A start of the agent does no more than that with a model that has passed its test; to read golden samples would take
    longer than to run a small model.

    Raises:
        ManifestError: the golden samples are missing or malformed.
        DataError, RuntimeLoadError: as Runtime.run.
    """
    row = _zero_row(runtime, manifest)
    if row is None:
        run_golden_row(runtime, manifest, folder)
    else:
        runtime.run(row)


def run_golden_row(runtime: Runtime, manifest: Manifest, folder: Path) -> None:
    """Run the first golden row, for a model with state from the zero state.

    Raises:
        ManifestError: the golden samples are missing or malformed.
        DataError, RuntimeLoadError: as Runtime.run.
    """
    inputs = _golden_inputs(manifest, folder)
    run_golden(runtime, manifest, {name: value[:1] for name, value in inputs.items()})


def time_golden_row(runtime: Runtime, manifest: Manifest, folder: Path) -> float:
    """Seconds of a run of the first golden row. Raises as `run_golden_row`."""
    inputs = {name: value[:1] for name, value in _golden_inputs(manifest, folder).items()}
    start = time.perf_counter()
    run_golden(runtime, manifest, inputs)
    return time.perf_counter() - start


def measure_rows(
    runtime: Runtime, manifest: Manifest, folder: Path, *, fast_seconds: float, limit_seconds: float
) -> int:
    """Measure how many rows to join in one run; 1 where joining does not pay or changes the answers.

    Args:
        runtime: The loaded model.
        manifest: Manifest of the bundle.
        folder: Folder of its files.
        fast_seconds: Nothing is joined for a model whose run takes less time.
        limit_seconds: Longest measurement.

    Raises:
        As `run_golden_row`.
    """
    row = _zero_row(runtime, manifest)
    if row is not None and min(_timed_run(runtime, row)[0] for _ in range(3)) < fast_seconds:
        return 1
    inputs = _golden_inputs(manifest, folder)
    golden = len(next(iter(inputs.values())))
    axes = batching.batch_axes((*runtime.inputs, *runtime.outputs))
    singles = [
        {spec.name: to_layout(spec, inputs[spec.name][i : i + 1]) for spec in runtime.inputs if spec.name in inputs}
        for i in range(golden)
    ]
    seconds = {1: min(_timed_run(runtime, singles[0])[0] for _ in range(3))}
    if seconds[1] < fast_seconds:
        return 1
    spent = 0.0
    for rows in batching.BATCH_ROWS:
        if spent + 2 * rows * seconds[1] > limit_seconds:
            break
        chosen = [singles[i % golden] for i in range(rows)]
        try:
            (first, outputs), (second, _) = (_timed_run(runtime, batching.join(chosen, axes)) for _ in range(2))
        except ArenaFullError:
            break
        spent += first + second
        for one, joined in zip(chosen[:golden], batching.split(outputs, [1] * rows, axes), strict=False):
            if batching.differs(manifest, runtime.run(one), joined):
                return 1
        seconds[rows] = min(first, second)
    return batching.best_rows(seconds)


def _zero_row(runtime: Runtime, manifest: Manifest) -> dict[str, Array] | None:
    """One row of zeros; None for a model with state, or with an input that is not PLAIN."""
    if state_links(manifest.inputs) or any(spec.dtype not in PLAIN for spec in runtime.inputs):
        return None
    shapes = {spec.name: [1 if size is None else size for size in spec.shape] for spec in runtime.inputs}
    return {spec.name: np.zeros(shapes[spec.name], spec.dtype.numpy) for spec in runtime.inputs}


def _golden_inputs(manifest: Manifest, folder: Path) -> dict[str, Array]:
    try:
        return read_golden(read_file(manifest, folder, manifest.file(ROLE_GOLDEN)))[0]
    except OSError as error:
        raise ManifestError(f"golden samples cannot be read: {error}") from error


def _timed_run(runtime: Runtime, inputs: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
    start = time.perf_counter()
    outputs = runtime.run(inputs)
    return time.perf_counter() - start, outputs
