"""Statistics of a loaded model, for the protocol's statistics document."""

from __future__ import annotations

from typing import Any

import msgspec


class Statistics(msgspec.Struct):
    """Rising sums of one loaded model since its load. Times are in nanoseconds.

    Attributes:
        last_ms: Wall clock of the last run in milliseconds since 1970; 0 before the first run.
        rows, runs: Answered rows, and the runtime's runs for them.
        success_count, success_ns: Answered requests, and their time from arrival to answer.
        fail_count, fail_ns: Failed requests, and their time.
        queue_ns, compute_ns: The two parts of `success_ns`: waiting and running.
    """

    last_ms: int = 0
    rows: int = 0
    runs: int = 0
    success_count: int = 0
    success_ns: int = 0
    fail_count: int = 0
    fail_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0

    def succeeded(self, *, rows: int, queue_ns: int, compute_ns: int, wall_ms: int, runs: int = 1) -> None:
        """Count an answered request; `runs` is 0 where its run is counted already, with another request."""
        self.last_ms = wall_ms
        self.rows += rows
        self.runs += runs
        self.success_count += 1
        self.success_ns += queue_ns + compute_ns
        self.queue_ns += queue_ns
        self.compute_ns += compute_ns

    def failed(self, spent_ns: int) -> None:
        """Count a failed request."""
        self.fail_count += 1
        self.fail_ns += spent_ns


def statistics_document(name: str, version: str, statistics: Statistics) -> dict[str, Any]:
    """One entry of ``model_stats`` in ``/v2/models/<m>/stats``.

    ``compute_infer`` includes the preparation of tensors; ``compute_input`` and ``compute_output`` are always 0.
    """

    def pair(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": ns}

    return {
        "name": name,
        "version": version,
        "last_inference": statistics.last_ms,
        "inference_count": statistics.rows,
        "execution_count": statistics.runs,
        "inference_stats": {
            "success": pair(statistics.success_count, statistics.success_ns),
            "fail": pair(statistics.fail_count, statistics.fail_ns),
            "queue": pair(statistics.success_count, statistics.queue_ns),
            "compute_input": pair(0, 0),
            "compute_infer": pair(statistics.success_count, statistics.compute_ns),
            "compute_output": pair(0, 0),
        },
        "batch_stats": [],
    }
