"""Opening a bundle's runtime, in this process or in a worker process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import Manifest
from edgekit.protocols import Runtime
from edgekit.runtimes import ONNXRUNTIME, import_library, open_runtime
from edgekit.runtimes.providers import GPU, Acceleration
from edgekit.sealing.opening import keyring_paths
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.worker.runtime import WorkerRuntime
from edgekit.versions import version_of

_GPU_DISTRIBUTION = "onnxruntime-gpu"


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
        options = {"threads": self._threads, "acceleration": msgspec.to_builtins(self._wanted)}
        if manifest.sealed is not None:
            options["class_keys"] = [str(path) for path in keyring_paths()]
        return WorkerRuntime(
            manifest,
            folder,
            options=options,
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
