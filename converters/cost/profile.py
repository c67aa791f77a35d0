"""Profiles a bundle's artifact: the instructions of an emulated ARM core, or time and memory of this machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from converters.cost.emulated.cores import CORES
from converters.cost.file_estimate import core_of_target
from converters.cost.measuring.inputs import first_sample
from converters.cost.measuring.messages import Layer, Outcome
from converters.cost.measuring.process import HOST, Measuring
from edgekit.bundle.golden import read_golden
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_GOLDEN, ROLE_MODEL, Cost, Manifest, parse_manifest
from edgekit.bundle.targets import builtin_targets
from edgekit.errors import ManifestError, SettingsError
from edgekit.runtimes import open_runtime
from edgekit.tensors import Array

PLACES = (*CORES, HOST)
TIMED_SECONDS = 2.0
MEMORY_MEANING = (
    "private memory and the model's file, beyond the runtime's library: at least this much at the peak of loading and "
    "running"
)


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The needs of one inference of a bundle. Instructions and times are of one call with one row and one thread.

    Attributes:
        bundle: ``name version target``.
        on: An emulated ARM core, or ``host``.
        runtime: Name and version of the runtime.
        instructions: Of one inference; None where they were not counted, and `not_counted` says why.
        runs: Runs that were counted.
        memory_bytes: See `MEMORY_MEANING`.
        p50_ms, p95_ms: Quantiles of the time in milliseconds; None where it is emulated, because that says nothing.
        estimate: The cost in the bundle's manifest.
        estimate_core: The ARM core of the target, whose instructions that cost is; empty where it is none.
        layers: Instructions by operator, with the runtime's own profiler; None where there are none.
        no_layers: Why there are no layers.
    """

    bundle: str
    on: str
    runtime: str
    instructions: float | None
    not_counted: str
    runs: int
    memory_bytes: int
    p50_ms: float | None = None
    p95_ms: float | None = None
    timed_runs: int = 0
    estimate: Cost | None = None
    estimate_core: str = ""
    layers: tuple[Layer, ...] | None = None
    no_layers: str = ""


def profile_bundle(
    folder: Path, where: str, *, seconds: float = TIMED_SECONDS, limit_seconds: float | None = None
) -> Profile:
    """Profile the artifact of a bundle on its first golden sample.

    Args:
        folder: The bundle.
        where: One of `PLACES`.
        seconds: How long times are measured on the host.
        limit_seconds: Longest time of the whole measurement; None for `limit_of`.

    Raises:
        ManifestError: The folder is not a bundle.
        SettingsError: The bundle is sealed.
        RuntimeLoadError: The artifact cannot be loaded or run, or not within the limit.
        UnavailableError: This machine cannot emulate the core.
    """
    manifest = _manifest(folder)
    if manifest.sealed is not None:
        raise SettingsError(
            f"{folder} is sealed, and a sealed model is opened in the memory of its own process only",
            advice="Profile the bundle that edgekit convert wrote, before it was sealed.",
        )
    with Measuring(where, limit_seconds) as measuring:
        outcome = measuring.measure(
            folder / manifest.file(ROLE_MODEL).path,
            manifest.runtime,
            artifact_inputs(folder, manifest),
            layers=where != HOST,
            seconds=seconds if where == HOST else 0.0,
        )
    return _profile(manifest, where, outcome)


def _manifest(folder: Path) -> Manifest:
    try:
        return parse_manifest((folder / MANIFEST_NAME).read_bytes())
    except OSError as error:
        raise ManifestError(
            f"{folder} is not a bundle: {error}", advice="Give the folder that edgekit convert wrote."
        ) from error


def artifact_inputs(folder: Path, manifest: Manifest) -> dict[str, Array]:
    """The artifact's own inputs for the first golden sample, with a state of zeros.

    Raises:
        ManifestError, RuntimeLoadError: The bundle is damaged.
    """
    try:
        golden, _ = read_golden((folder / manifest.file(ROLE_GOLDEN).path).read_bytes())
    except OSError as error:
        raise ManifestError(f"the golden samples of {folder} cannot be read: {error}") from error
    runtime = open_runtime(manifest, folder)
    try:
        return first_sample(runtime, manifest.inputs, golden)
    finally:
        runtime.close()


def _core(manifest: Manifest) -> str:
    """The core of a built-in target; those of the user's own are in a file that the bundle does not have."""
    profile = builtin_targets().get(manifest.target)
    return core_of_target(profile) if profile is not None else ""


def _profile(manifest: Manifest, where: str, outcome: Outcome) -> Profile:
    package = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime"}[manifest.runtime]
    times = outcome.milliseconds
    return Profile(
        bundle=f"{manifest.name} {manifest.version} {manifest.target}",
        on=where,
        runtime=f"{package} {outcome.versions.get(package, '')}".strip(),
        instructions=outcome.instructions,
        not_counted=outcome.not_counted,
        runs=outcome.runs,
        memory_bytes=outcome.memory_bytes,
        p50_ms=float(np.quantile(times, 0.5)) if times else None,
        p95_ms=float(np.quantile(times, 0.95)) if times else None,
        timed_runs=len(times),
        estimate=manifest.cost or None,
        estimate_core=_core(manifest),
        layers=outcome.layers,
        no_layers=outcome.no_layers,
    )
