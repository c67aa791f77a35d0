"""The process that runs a bundle on one runtime version: ``python -m``, in any environment with numpy and msgspec.

What libraries print goes to stderr; the parent reads the files that the request names.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path

import msgspec
import numpy as np

from converters.cost.measuring.counters import emulated_counter, kernel_counter
from converters.cost.measuring.inputs import first_sample
from converters.cost.measuring.messages import EMULATED, Job
from converters.cost.measuring.subject import measure
from converters.recheck.messages import GOLDEN, NOT_THE_RUNTIME, Request, Result, Rows
from edgekit.bundle.golden import read_golden, run_golden, write_golden
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_MODEL, Manifest, parse_manifest
from edgekit.bundle.sample_rows import run_samples
from edgekit.bundle.state import run_stream, state_links
from edgekit.errors import EdgekitError
from edgekit.runtimes import LogicalRuntime, open_runtime
from edgekit.tensors import Array

CHUNK_ROWS = 64


def answer(request: Request, manifest: Manifest) -> Result:
    """Write the answers to every set of rows.

    Raises:
        EdgekitError: the bundle cannot be loaded or run.
    """
    with contextlib.closing(
        open_runtime(manifest, Path(request.bundle), providers=("CPUExecutionProvider",))
    ) as runtime:
        for rows in request.rows:
            inputs, _ = read_golden(Path(rows.inputs).read_bytes())
            if rows.name == GOLDEN:
                Path(request.first).write_bytes(write_golden(first_sample(runtime, manifest.inputs, inputs), {}))
            Path(rows.answers).write_bytes(write_golden({}, _answers(runtime, manifest, rows, inputs)))
    return Result()


def _answers(runtime: LogicalRuntime, manifest: Manifest, rows: Rows, inputs: dict[str, Array]) -> dict[str, Array]:
    if rows.name == GOLDEN:
        return run_golden(runtime, manifest, inputs)
    links = state_links(manifest.inputs)
    if not links:
        return run_samples(runtime.run, runtime.inputs, runtime.outputs, inputs, rows=CHUNK_ROWS)
    parts, start = [], 0
    for size in rows.streams:
        stream = {name: value[start : start + size] for name, value in inputs.items()}
        parts.append(run_stream(runtime, links, stream))
        start += size
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def cost(request: Request, manifest: Manifest, *, emulated: bool) -> Result:
    """Measure one inference in a fresh process.

    Raises:
        EdgekitError: the artifact cannot be loaded or run.
    """
    path = Path(request.bundle) / manifest.file(ROLE_MODEL).path
    counter = emulated_counter() if emulated else kernel_counter()
    found = measure(Job(path=str(path), runtime=manifest.runtime, inputs=request.first), counter, emulated=emulated)
    return Result(instructions=found.instructions, not_counted=found.not_counted, memory_bytes=found.memory_bytes)


def main() -> None:
    """Serve the request in the file that the last argument names."""
    os.dup2(2, 1)
    try:
        _serve(msgspec.json.decode(Path(sys.argv[-1]).read_bytes(), type=Request))
    except (OSError, MemoryError) as error:  # of this machine, which says nothing about the runtime
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(NOT_THE_RUNTIME)


def _serve(request: Request) -> None:
    importlib.import_module(request.module)
    manifest = parse_manifest((Path(request.bundle) / MANIFEST_NAME).read_bytes())
    try:
        result = answer(request, manifest) if request.rows else cost(request, manifest, emulated=EMULATED in sys.argv)
    except EdgekitError as error:
        result = Result(fault=str(error))
    Path(request.result).write_bytes(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
