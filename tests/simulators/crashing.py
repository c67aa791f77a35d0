"""A runtime that crashes, hangs, leaks or raises on demand; a worker process opens it by LOADER.

The demand is the first number of the input ``x``.
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
    """A real runtime beside the ways to end."""

    providers = (("FastProvider", "CPUExecutionProvider"), ("CPUExecutionProvider",))

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._real = open_runtime(manifest, folder)
        self._leaked: list[bytes] = []
        self.inputs, self.outputs, self.provider = self._real.inputs, self._real.outputs, self._real.provider

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        demand = float(next((value.ravel()[0] for value in inputs.values() if value.size), 0.0))
        if demand == SEGFAULT:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif demand == HANG:
            ctypes.PyDLL(None).sleep(600)  # in native code, with the interpreter's lock
        elif demand == RAISE:
            raise ValueError("a bug")
        elif demand == EXIT:
            os._exit(7)
        elif demand == REFUSE:
            raise RuntimeLoadError("the runtime failed", advice="Try another.")
        elif demand == LEAK:
            self._leaked.append(b"x" * LEAK_BYTES)
        return self._real.run(inputs)

    def close(self) -> None:
        self._real.close()


def open_it(manifest: Manifest, folder: Path, **options: Any) -> Crashing:
    """Open it; crashes while the file `crash_while` is there."""
    if os.path.exists(options.get("crash_while", "")):
        os.kill(os.getpid(), signal.SIGSEGV)
    return Crashing(manifest, folder)
