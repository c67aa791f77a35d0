"""The request to the process that `profile` measures, and its answer. Pure."""

from __future__ import annotations

import msgspec


class MeasuringJob(msgspec.Struct, frozen=True):
    """The measurement to make, and its limits.

    Attributes:
        seconds: How long runs are measured.
        limit_seconds: The process ends after this time.
        memory_bytes: Most private memory.
        threads: Threads of the runtime.
        class_keys: Key files of device classes, for sealed bundles.
    """

    seconds: float
    limit_seconds: float
    memory_bytes: int
    threads: int = 1
    class_keys: tuple[str, ...] = ()


class Measured(msgspec.Struct, frozen=True):
    """The result.

    Attributes:
        provider: Delegate or execution provider.
        runs: Measured runs of one row.
        load_ms: Time to load the model, without the import of its runtime.
        p50_ms, p95_ms: Quantiles of the time of one run.
        peak_bytes: Most resident memory of the process.
        model_bytes: Of it, what the model added to Python and the runtime's library.
        fault: Why it could not be measured; empty if it was.
    """

    provider: str = ""
    runs: int = 0
    load_ms: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    peak_bytes: int = 0
    model_bytes: int = 0
    fault: str = ""
