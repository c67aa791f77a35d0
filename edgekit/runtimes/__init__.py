"""Runtime adapters: LiteRT and ONNX Runtime. `open_runtime` loads a bundle's model with its logical tensors.

Serving code (queues, batching, worker processes) does not belong here.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgekit.bundle.manifest import ROLE_MODEL, Manifest
from edgekit.errors import ManifestError, MissingExtraError, RuntimeLoadError
from edgekit.runtimes.logical import LogicalRuntime, RawRuntime
from edgekit.runtimes.providers import TENSORRT, Acceleration, engine_key, options
from edgekit.sealing.opening import file_path, use_keyring

__all__ = ["LITERT", "ONNXRUNTIME", "Acceleration", "LogicalRuntime", "RawRuntime", "import_library", "open_runtime"]

LITERT, ONNXRUNTIME = "litert", "onnxruntime"


def open_runtime(
    manifest: Manifest,
    folder: Path,
    *,
    threads: int = 1,
    providers: Sequence[str] | None = None,
    acceleration: Acceleration | Mapping[str, Any] | None = None,
    class_keys: Sequence[str] = (),
) -> LogicalRuntime:
    """Load a bundle's model; slow (up to seconds) and blocking, so call it from a worker thread.

    Args:
        manifest: Manifest of the bundle; its runtime chooses the adapter. The caller has verified the files.
        folder: Folder of the bundle's files.
        threads: Number of threads of the runtime.
        providers: ONNX Runtime execution providers, the preferred first; None uses the best installed one.
        acceleration: Options of the providers, instead of `providers`; a plain mapping if sent by another process.
        class_keys: Key files of device classes, if this process has no keyring yet (a worker process).

    Raises:
        CompatibilityError, SealError: The bundle is sealed and cannot be opened here.
        ManifestError: This version of edgekit has no such runtime.
        MissingExtraError: The runtime is not installed.
        RuntimeLoadError: The artifact cannot be loaded, or does not match the manifest.
    """
    if class_keys:
        from edgekit.sealing.keyring import Keyring  # only sealed bundles need it, and cryptography is slow to import

        use_keyring(Keyring([Path(one) for one in class_keys]))
    entry = manifest.file(ROLE_MODEL)
    with file_path(manifest, folder, entry) as path:
        try:
            raw = _open_raw(manifest, path, threads, providers, acceleration)
        except RuntimeLoadError as error:
            if manifest.sealed is None:
                raise
            raise RuntimeLoadError(f"{entry.path}, opened in memory: {error}", advice=error.advice) from error
    return LogicalRuntime(raw, manifest.inputs, manifest.outputs)


def _open_raw(
    manifest: Manifest,
    path: Path,
    threads: int,
    providers: Sequence[str] | None,
    acceleration: Acceleration | Mapping[str, Any] | None,
) -> RawRuntime:
    # Adapters are imported only when chosen: most devices have only one runtime installed.
    if manifest.runtime == LITERT:
        from edgekit.runtimes.litert import LiteRTRuntime

        return LiteRTRuntime(path, threads=threads)
    if manifest.runtime == ONNXRUNTIME:
        from edgekit.runtimes.onnx import OnnxRuntime, installed_providers

        wanted = msgspec.convert(acceleration or {"providers": tuple(providers or ())}, Acceleration)
        chosen = wanted.providers or installed_providers()
        free = any(size is None for binding in manifest.inputs for size in binding.artifact.shape)
        # An arena never shrinks. That is fine if every run has the same size, but not with a free batch.
        return OnnxRuntime(
            path,
            providers=chosen,
            options=_provider_options(manifest, chosen, wanted),
            required=wanted.required,
            threads=threads,
            arena=not free,
            arena_bytes=wanted.arena_bytes,
        )
    raise ManifestError(f"runtime is {manifest.runtime!r}, expected {LITERT!r} or {ONNXRUNTIME!r}")


def _provider_options(manifest: Manifest, chosen: Sequence[str], wanted: Acceleration) -> dict[str, dict[str, str]]:
    inputs = [binding.artifact for binding in manifest.inputs]
    engines = ""
    # No engine of a sealed bundle is stored, because an engine contains the plain model.
    if TENSORRT in chosen and wanted.engine_cache and manifest.sealed is None:
        from edgekit.runtimes.gpu import engine_folder, gpu_versions

        key = engine_key(manifest.file(ROLE_MODEL).sha256, gpu_versions(), inputs)
        engines = str(engine_folder(Path(wanted.engine_cache), key))
    precision = manifest.recipe.precision
    return {name: options(name, wanted, precision=precision, engines=engines, inputs=inputs) for name in chosen}


def import_library(manifest: Manifest) -> None:
    """Import the library of a bundle's runtime if it is installed; `open_runtime` reports a missing one."""
    name = {LITERT: "edgekit.runtimes.litert", ONNXRUNTIME: "edgekit.runtimes.onnx"}.get(manifest.runtime)
    if name is not None:
        with contextlib.suppress(MissingExtraError):
            importlib.import_module(name)
