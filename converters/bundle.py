"""Writes a bundle: golden answers with measured tolerances, the manifest, and the folder in one atomic step."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from converters.backends import Artifact
from converters.candidates.candidate import open_artifact
from edgekit.bundle.golden import judge, run_golden, write_golden
from edgekit.bundle.manifest import (
    MANIFEST_NAME,
    ROLE_CALIBRATION,
    ROLE_COMPILED,
    ROLE_GOLDEN,
    ROLE_MODEL,
    ROLE_REPORT,
    Golden,
    Manifest,
    Tolerance,
    file_entry,
    manifest_faults,
)
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.drift.reference import REFERENCE_NAME, ROLE_REFERENCE
from edgekit.errors import ConversionError, DataError
from edgekit.tensors import Array

GOLDEN_ROWS = 16
CALIBRATION = "calibration.bin"
COMPILED = "model.compiled.tflite"
MARGIN = 1.5
SMALLEST_TOLERANCE = 1e-6

# Allowed difference between correct runtimes of one artifact, beyond the difference measured on this machine, as a
# share of the output's range. CPUs differ in the rounding of float sums, GPUs multiply float32 with 10 mantissa bits,
# and int8 kernels differ by one step.
CPU_FLOAT32, GPU_FLOAT32, FLOAT16, INT8_TOLERANCE = 1e-5, 2e-3, 2e-3, 1 / 127


def measure_golden(
    artifact: Artifact,
    recipe: Recipe,
    manifest: Manifest,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    *,
    profile: TargetProfile,
    folder: Path,
) -> Golden:
    """Run the golden rows through the artifact and set the tolerances for answers on devices.

    A tolerance is MARGIN times the measured difference, plus the allowed difference of other hardware. Decisions must
    match on devices if they match here, and if no row is so close that the tolerance could change its decision.

    Raises:
        ConversionError: the answers hold undefined values.
    """
    runtime = open_artifact(artifact, folder)
    try:
        answers = run_golden(runtime, manifest, inputs)
    finally:
        runtime.close()
    rows = len(next(iter(inputs.values())))
    unlimited = tuple(Tolerance(b.spec.name, artifact.runtime, float("inf")) for b in manifest.outputs)
    result = judge(msgspec.structs.replace(manifest, golden=Golden(rows, unlimited, False)), expected, answers)
    if result.faults:
        raise ConversionError("the golden answers cannot be used: " + "; ".join(result.faults))
    share = _share(recipe, profile)
    limits = {
        name: MARGIN * worst + max(SMALLEST_TOLERANCE, share * _range(expected[name]))
        for name, worst in result.max_abs.items()
    }
    tolerances = tuple(Tolerance(name, artifact.runtime, limit) for name, limit in limits.items())
    task = manifest.task
    decisive = task.kind == "classification" and result.agreement == 1.0
    if decisive:
        best = np.sort(expected[task.output].astype(np.float64), axis=-1)
        decisive = bool((best[..., -1] - best[..., -2]).min() > 2 * limits[task.output])
    return Golden(rows, tolerances, decisive)


def _range(answers: Array) -> float:
    """Largest minus smallest answer; 0 for bytes and truth values, which are compared exactly."""
    return float(np.ptp(answers.astype(np.float64))) if answers.dtype.kind in "fiu" and answers.size else 0.0


def golden_rows(answers: Mapping[str, Array], decision: str) -> Array:
    """Choose the golden rows: up to GOLDEN_ROWS indices in ascending order.

    Where `decision` names an output with scores, rows are chosen from the half with the clearest decisions: a close
    decision may differ between correct runtimes, so it proves nothing.
    """
    first = next(iter(answers.values()))
    rows = np.arange(len(first))
    if decision:
        best = np.sort(answers[decision].astype(np.float64), axis=-1)
        order = np.argsort(-(best[..., -1] - best[..., -2]), kind="stable")
        rows = order[: max(GOLDEN_ROWS, len(order) // 2)]
    picked = np.linspace(0, len(rows) - 1, min(GOLDEN_ROWS, len(rows))).round().astype(np.int64)
    return np.sort(rows[picked])


def bundle_files(
    artifact: Artifact, golden: bytes, report: bytes, page: bytes, reference: bytes
) -> dict[str, tuple[str, bytes]]:
    """The bundle's files except the manifest: (role, bytes) by name; no file for empty bytes beside the artifact."""
    beside = {
        COMPILED: (ROLE_COMPILED, artifact.compiled),
        CALIBRATION: (ROLE_CALIBRATION, artifact.calibration),
        REFERENCE_NAME: (ROLE_REFERENCE, reference),
    }
    return {
        artifact.file: (ROLE_MODEL, artifact.data),
        **{path: entry for path, entry in beside.items() if entry[1]},
        "golden.npz": (ROLE_GOLDEN, golden),
        "report.json": (ROLE_REPORT, report),
        "report.html": (ROLE_REPORT, page),
    }


def with_files(manifest: Manifest, files: Mapping[str, tuple[str, bytes]]) -> Manifest:
    """The manifest with the entries of `files`.

    Raises:
        ConversionError: a device would not accept the manifest.
    """
    entries = tuple(file_entry(path, role, data) for path, (role, data) in files.items())
    done = msgspec.structs.replace(manifest, files=entries)
    faults = manifest_faults(done)
    if faults:
        raise ConversionError("the manifest is not valid: " + "; ".join(faults))
    return done


def golden_bytes(inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> bytes:
    """The bytes of golden.npz: real inputs and the answers of the canonical float model."""
    return write_golden(inputs, expected)


def require_writable(output: Path, name: str) -> Path:
    """Check that a bundle may be written to the folder `output`/`name`, and return its path. Nothing is made.

    Raises:
        DataError: the folder exists and is not a bundle, or the nearest existing folder is not writable.
    """
    folder = output / name
    if folder.exists() and not (folder / MANIFEST_NAME).is_file():
        raise DataError(f"{folder} exists and is not a bundle", advice="Move it, or choose another folder with -o.")
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise DataError(
            f"bundles cannot be written to {output}: {nearest} is {'not writable' if nearest.is_dir() else 'a file'}",
            advice="Choose another folder with -o.",
        )
    return folder


def write_bundle(output: Path, name: str, manifest: Manifest, files: Mapping[str, tuple[str, bytes]]) -> Path:
    """Write the folder `output`/`name`. The folder is renamed when it is complete, so it is never partial.

    An existing bundle is replaced.

    Raises:
        DataError: the folder exists and is not a bundle, or it cannot be written.
    """
    folder = require_writable(output, name)
    scratch: Path | None = None
    try:
        output.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=output))
        staged = scratch / name
        staged.mkdir()
        for path, data in [*((p, d) for p, (_, d) in files.items()), (MANIFEST_NAME, manifest.canonical_bytes())]:
            (staged / path).write_bytes(data)
        if folder.exists():
            os.rename(folder, scratch / "replaced")
        os.rename(staged, folder)
    except OSError as error:
        raise DataError(f"bundle {folder} cannot be written: {error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _share(recipe: Recipe, profile: TargetProfile) -> float:
    if recipe.precision == "float32":
        return GPU_FLOAT32 if len(profile.providers) > 1 else CPU_FLOAT32
    return FLOAT16 if recipe.precision == "float16" else INT8_TOLERANCE
