"""The process that the command `profile` measures: loads one bundle, runs its first golden sample, prints one line.

Start it with ``python -m device_agents.profiling.measured_process FOLDER JOB``. The system ends it at its limits, also
while native code runs.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from device_agents.profiling.measuring import Measured, MeasuringJob
from edgekit.bundle.golden import read_golden
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_GOLDEN, ROLE_MODEL, parse_manifest
from edgekit.bundle.state import first_call
from edgekit.errors import EdgekitError, RuntimeLoadError
from edgekit.protocols import Runtime
from edgekit.runtimes import import_library, open_runtime
from edgekit.runtimes.model_memory import ModelMemory
from edgekit.sealing.opening import read_file
from edgekit.tensors import Array

NICE = 10  # answers to applications come first
WARM_UP_RUNS = 3
MIN_RUNS, MAX_RUNS = 5, 100_000


def main(folder: Path, job: MeasuringJob) -> None:
    """Measure and print the result."""
    _limit(job)
    try:
        print(msgspec.json.encode(_measure(folder, job)).decode())
    except MemoryError:
        print(msgspec.json.encode(Measured(fault="it needs more memory than its limit")).decode())
    except RuntimeLoadError as error:
        print(msgspec.json.encode(Measured(fault=str(error))).decode())
    except EdgekitError as error:
        print(msgspec.json.encode(Measured(fault=f"{type(error).__name__}: {error}")).decode())


def _limit(job: MeasuringJob) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, job.limit_seconds)
    with contextlib.suppress(OSError):
        os.nice(NICE)
    with contextlib.suppress(OSError):  # not Linux: the agent watches the time only
        Path("/proc/self/oom_score_adj").write_bytes(b"500")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _measure(folder: Path, job: MeasuringJob) -> Measured:
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
    import_library(manifest)
    # Only now: a library that cannot be imported for want of memory looks like one that is not installed.
    resource.setrlimit(resource.RLIMIT_DATA, (job.memory_bytes, job.memory_bytes))
    memory, began = ModelMemory((folder / manifest.file(ROLE_MODEL).path).absolute()), time.perf_counter()
    runtime = open_runtime(manifest, folder, threads=job.threads, class_keys=job.class_keys)
    load_ms = (time.perf_counter() - began) * 1000
    golden, _ = read_golden(read_file(manifest, folder, manifest.file(ROLE_GOLDEN)))
    call = first_call(runtime.inputs, manifest.inputs, golden)
    for _ in range(WARM_UP_RUNS):
        runtime.run(call)
    model_bytes = memory.peak()  # before the times, which take memory too
    times = _times(runtime, call, job.seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    provider = runtime.provider
    runtime.close()
    return Measured(
        provider=provider,
        runs=len(times),
        load_ms=round(load_ms, 3),
        p50_ms=round(float(np.quantile(times, 0.5)), 4),
        p95_ms=round(float(np.quantile(times, 0.95)), 4),
        peak_bytes=peak,
        model_bytes=model_bytes,
    )


def _times(runtime: Runtime, call: dict[str, Array], seconds: float) -> list[float]:
    """Milliseconds of each run."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or (time.perf_counter() < end and len(times) < MAX_RUNS):
        times.append(_timed(lambda: runtime.run(call)))
    return times


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=MeasuringJob))
