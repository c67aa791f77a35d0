"""Opening a bundle's runtime, in this process or in a worker process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgekit.bundle.manifest import Manifest
from edgekit.protocols import Runtime
from edgekit.runtimes import ONNXRUNTIME, import_library, open_runtime
from edgekit.runtimes.providers import GPU, Acceleration
from edgekit.sealing.opening import keyring_paths
from edgekit.serving.models.options import ModelOptions
from edgekit.versions import version_of

_GPU_DISTRIBUTION = "onnxruntime-gpu"
LOW_PRIORITY = "edgekit.serving.worker.loader:open_at_low_priority"
_NICENESS = 19  # the least share of the processor


class Loader:
    """Opens bundles by the options of their models. It blocks, so call it on a thread.

    Args:
        options: Returns the options of a model by its name.
        threads: Threads of each runtime.
        providers: ONNX Runtime execution providers, the preferred first; None takes the best installed one.
        acceleration: Execution providers and their settings, in place of `providers`.
    """

    def __init__(
        self,
        options: Callable[[str], ModelOptions],
        *,
        threads: int = 1,
        providers: Sequence[str] | None = None,
        acceleration: Acceleration | None = None,
    ) -> None:
        self._options, self._threads = options, threads
        self._wanted = acceleration or Acceleration(providers=tuple(providers or ()))

    def __call__(self, manifest: Manifest, folder: Path) -> Runtime:
        """Open a bundle. Raises as `open_runtime` and `WorkerRuntime`."""
        if not self.is_isolated(manifest):
            return open_runtime(manifest, folder, threads=self._threads, acceleration=self._wanted)
        return self._in_worker(manifest, folder)

    def aside(self, manifest: Manifest, folder: Path) -> Runtime:
        """Open a bundle in a process of the lowest priority, so that it neither delays nor harms this one."""
        return self._in_worker(manifest, folder, loader=LOW_PRIORITY)

    def _in_worker(self, manifest: Manifest, folder: Path, loader: str = "") -> Runtime:
        # Imported here, because most devices run their models in the agent's process.
        from edgekit.serving.worker.runtime import OPEN_RUNTIME, WorkerRuntime

        options = {"threads": self._threads, "acceleration": msgspec.to_builtins(self._wanted)}
        if manifest.sealed is not None:
            options["class_keys"] = [str(path) for path in keyring_paths()]
        return WorkerRuntime(
            manifest,
            folder,
            options=options,
            loader=loader or OPEN_RUNTIME,
            run_seconds=self._options(manifest.name).run_timeout_seconds,
        )

    def prepare(self, manifest: Manifest) -> None:
        """Import the library of a bundle's runtime where the bundle will run in this process."""
        if not self.is_isolated(manifest):
            import_library(manifest)

    def is_isolated(self, manifest: Manifest) -> bool:
        """True where a bundle runs in a process of its own."""
        chosen = self._options(manifest.name).isolation
        if chosen != "auto":
            return chosen == "process"
        if manifest.runtime != ONNXRUNTIME:
            return False
        if self._wanted.providers:
            return any(provider in GPU for provider in self._wanted.providers)
        return version_of(_GPU_DISTRIBUTION) is not None  # its GPU providers are then preferred


def open_at_low_priority(manifest: Manifest, folder: Path, **options: Any) -> Runtime:
    """Open a bundle after lowering the priority of this process. Raises as `open_runtime`."""
    os.nice(_NICENESS)
    return open_runtime(manifest, folder, **options)
