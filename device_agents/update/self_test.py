"""The golden self-test: compares a bundle's answers on this device with those of the canonical float model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from device_agents.threads import in_daemon_thread
from edgekit.bundle.golden import SelfTest, self_test
from edgekit.bundle.manifest import ROLE_GOLDEN, Manifest
from edgekit.errors import DataError, ManifestError, SelfTestError
from edgekit.protocols import Runtime
from edgekit.runtimes import open_runtime
from edgekit.sealing.opening import read_file


async def run_self_test(
    manifest: Manifest,
    folder: Path,
    threads: int = 1,
    *,
    providers: Sequence[str] | None = None,
    load: Callable[[Manifest, Path], Runtime] | None = None,
) -> SelfTest:
    """Load a bundle in a thread with a runtime of its own, run its golden samples and judge the answers.

    Args:
        manifest: Manifest of the bundle; its files have been verified.
        folder: Folder of the files.
        threads: Threads of the runtime.
        providers: As `open_runtime`.
        load: Opens the bundle instead of `open_runtime`, for a runtime in a process of its own.

    Raises:
        SelfTestError: an answer is outside the tolerance; names output, difference and limit.
        RuntimeLoadError: the artifact cannot be loaded or run.
        ManifestError: the golden samples are malformed.
        MissingExtraError: the runtime is not installed.
    """
    opener = load or functools.partial(open_runtime, threads=threads, providers=providers)
    return await in_daemon_thread(_load_and_check, manifest, folder, opener)


def _load_and_check(manifest: Manifest, folder: Path, load: Callable[[Manifest, Path], Runtime]) -> SelfTest:
    runtime = load(manifest, folder)
    try:
        return check_golden(runtime, manifest, folder)
    finally:
        runtime.close()


def check_golden(runtime: Runtime, manifest: Manifest, folder: Path) -> SelfTest:
    """Judge a loaded runtime by the bundle's golden samples; raises as `run_self_test`."""
    try:
        result = self_test(runtime, manifest, read_file(manifest, folder, manifest.file(ROLE_GOLDEN)))
    except OSError as error:
        raise ManifestError(f"golden samples cannot be read: {error}") from error
    except DataError as error:
        raise ManifestError(f"golden samples do not fit the model: {error}") from error
    if not result.passed:
        name = f"{manifest.name} {manifest.version}"
        raise SelfTestError(f"{name} failed its self-test on {runtime.provider}: " + "; ".join(result.faults))
    return result
