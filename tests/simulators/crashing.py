"""A runtime that crashes, hangs, leaks memory or raises on demand. A worker process opens it through LOADER.

The first number of the input selects the fault: one of the constants below.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import Manifest
from edgekit.errors import RuntimeLoadError
from edgekit.runtimes import open_runtime
from edgekit.tensors import Array

LOADER = f"{__name__}:open_it"
SEGFAULT, HANG, RAISE, EXIT, REFUSE, LEAK = 1001.0, 1002.0, 1003.0, 1004.0, 1005.0, 1006.0
LEAK_BYTES = 2**27


class Crashing:
    """A real runtime with faults on demand."""

    providers = (("FastProvider", "CPUExecutionProvider"), ("CPUExecutionProvider",))

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._real = open_runtime(manifest, folder)
        self._leaked: list[bytes] = []
        self.inputs, self.outputs, self.provider = self._real.inputs, self._real.outputs, self._real.provider

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        fault = float(next((value.ravel()[0] for value in inputs.values() if value.size), 0.0))
        if fault == SEGFAULT:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif fault == HANG:
            ctypes.PyDLL(None).sleep(600)  # in native code, while holding the GIL
        elif fault == RAISE:
            raise ValueError("a bug")
        elif fault == EXIT:
            os._exit(7)
        elif fault == REFUSE:
            raise RuntimeLoadError("the runtime failed", advice="Try another.")
        elif fault == LEAK:
            self._leaked.append(b"x" * LEAK_BYTES)
        return self._real.run(inputs)

    def close(self) -> None:
        self._real.close()


def open_it(manifest: Manifest, folder: Path, **options: Any) -> Crashing:
    """Open the runtime. The process crashes if the file named by the option `crash_while` exists."""
    if os.path.exists(options.get("crash_while", "")):
        os.kill(os.getpid(), signal.SIGSEGV)
    return Crashing(manifest, folder)
