"""Instructions of artifacts on the core of a target, counted by emulation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cost_counts import random_inputs
from converters.cost.measuring.process import Measuring
from edgekit.errors import EdgekitError, UnavailableError
from edgekit.runtimes import LITERT

CORES = {"raspberry-pi-4": "cortex-a72", "raspberry-pi-5": "cortex-a76"}


def counts(target: str, files: Sequence[Path]) -> dict[str, float]:
    """Instructions of one inference, by file name without its suffix. A file that fails is left out.

    Empty where the core cannot be emulated.
    """
    found: dict[str, float] = {}
    try:
        with Measuring(CORES[target]) as measuring:
            for path in files:
                runtime = LITERT if path.suffix == ".tflite" else "onnxruntime"
                try:
                    outcome = measuring.measure(path, runtime, random_inputs(path, runtime))
                except UnavailableError:
                    raise
                except EdgekitError as error:
                    print(f"{path.name}: {error}", file=sys.stderr)
                    continue
                if outcome.instructions is not None:
                    found[path.stem] = outcome.instructions
    except UnavailableError as error:
        print(f"skipped: {error} {error.advice}", file=sys.stderr)
        return {}
    return found
