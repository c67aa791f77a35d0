"""Golden samples: real inputs with the canonical float model's outputs, and the comparison of a runtime with them.

Conversion measures the tolerances with this comparison, and the device's self-test applies them with the same one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import msgspec
import numpy as np

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.sample_rows import run_samples
from edgekit.bundle.state import client_outputs, run_stream, state_links
from edgekit.errors import DataError, ManifestError
from edgekit.protocols import Runtime
from edgekit.tensors import Array

INPUT, OUTPUT = "input:", "output:"


class SelfTest(msgspec.Struct, frozen=True):
    """Result of a runtime on the golden inputs.

    Attributes:
        faults: Every reason why the model must not be used; empty if it passed.
        max_abs: Largest absolute difference by output name, in the output's unit.
        agreement: Share of rows with the same decision; 1.0 if the task has no decisions.
        rows: Number of golden rows.
    """

    faults: tuple[str, ...]
    max_abs: dict[str, float]
    agreement: float
    rows: int

    @property
    def passed(self) -> bool:
        """True if there is no fault."""
        return not self.faults


def write_golden(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bytes:
    """The bytes of golden.npz: inputs (N, ...) and the float model's outputs (N, ...), with the samples first.

    For a model with state, they are one stream from the zero state.

    Raises:
        DataError: An element of BYTES ends in a zero byte, which numpy's fixed-length strings would drop.
    """
    buffer = io.BytesIO()
    arrays = {INPUT + name: _fixed(name, value) for name, value in inputs.items()}
    arrays.update({OUTPUT + name: _fixed(name, value) for name, value in outputs.items()})
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_golden(data: bytes) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and expected outputs by logical name. It never unpickles.

    Raises:
        ManifestError: The bytes are not a golden.npz.
    """
    import zipfile  # numpy imports it here too: an agent with tested models reads none at its start

    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: _variable(archive[name]) for name in archive.files}
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ManifestError(f"golden samples cannot be read: {error}") from error
    inputs = {name.removeprefix(INPUT): value for name, value in arrays.items() if name.startswith(INPUT)}
    outputs = {name.removeprefix(OUTPUT): value for name, value in arrays.items() if name.startswith(OUTPUT)}
    return inputs, outputs


def _fixed(name: str, value: Array) -> Array:
    """Convert BYTES to fixed-length strings, which need no pickle."""
    if value.dtype != object:
        return value
    fixed = value.astype("S")
    if not np.array_equal(fixed.astype(object), value):
        raise DataError(f"{name}: golden samples of BYTES cannot end in a zero byte")
    return fixed


def _variable(value: Array) -> Array:
    return value.astype(object) if value.dtype.kind == "S" else value


def self_test(runtime: Runtime, manifest: Manifest, golden: bytes) -> SelfTest:
    """Run the golden inputs and compare the outputs by the manifest's tolerances.

    Raises:
        ManifestError: The golden samples are malformed.
        DataError, RuntimeLoadError: As `Runtime.run`.
    """
    inputs, expected = read_golden(golden)
    return judge(manifest, expected, run_golden(runtime, manifest, inputs))


def run_golden(runtime: Runtime, manifest: Manifest, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The answers of a runtime to golden inputs. Those of a model with state are one stream from the zero state.

    Raises:
        DataError, RuntimeLoadError: As `Runtime.run`.
    """
    links = state_links(manifest.inputs)
    if links:
        return run_stream(runtime, links, inputs)
    if all(spec.batch_axis is None and spec.fits(inputs[spec.name]) for spec in runtime.inputs if spec.name in inputs):
        return runtime.run(inputs)  # one call of a model without a batch, and not samples of such calls
    return run_samples(runtime.run, runtime.inputs, runtime.outputs, inputs)


def judge(manifest: Manifest, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> SelfTest:
    """Compare outputs (N, ...) with those of the canonical float model."""
    faults: list[str] = []
    worst: dict[str, float] = {}
    limits = {t.output: t.max_abs for t in manifest.golden.tolerances if t.runtime == manifest.runtime}
    for name in (spec.name for spec in client_outputs(manifest.inputs, manifest.outputs)):
        if name not in limits or name not in expected or name not in actual:
            faults.append(f"{name}: no tolerance, no expected output or no output to compare")
            continue
        fault, worst[name] = _compare(name, expected[name], actual[name], limits[name])
        faults += fault
    agreement = _agreement(manifest, expected, actual) if not faults or manifest.task.output in worst else 0.0
    if manifest.golden.decisions_match and agreement < 1.0:
        faults.append(f"only {agreement:.1%} of the decisions equal those of the float model, expected all")
    return SelfTest(tuple(faults), worst, agreement, manifest.golden.samples)


def _compare(name: str, expected: Array, actual: Array, limit: float) -> tuple[list[str], float]:
    if expected.shape != actual.shape:
        return [f"{name}: output has shape {list(actual.shape)}, expected {list(expected.shape)}"], float("inf")
    if expected.dtype == object:
        differ = int(np.sum(expected != actual))
        return ([f"{name}: {differ} of {expected.size} elements differ, allowed none"] if differ else []), float(differ)
    if not np.isfinite(actual.astype(np.float64)).all():
        return [f"{name}: output contains NaN or infinity"], float("inf")
    worst = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
    return ([f"{name}: differs by {worst:.3g}, allowed {limit:.3g}"] if worst > limit else []), worst


def _agreement(manifest: Manifest, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> float:
    name = manifest.task.output
    if manifest.task.kind != "classification" or name not in actual or actual[name].shape != expected[name].shape:
        return 1.0 if manifest.task.kind != "classification" else 0.0
    return float(np.mean(np.argmax(expected[name], axis=-1) == np.argmax(actual[name], axis=-1)))
