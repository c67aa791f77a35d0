"""The counters of each model in the inference service. Pure."""

from __future__ import annotations

COUNTERS = (
    *("requests", "local", "cloud", "degraded", "errors", "cloud_errors"),
    *("runs", "run_us", "runtime_errors", "unusable"),  # of the local model; `run_us`: microseconds, queue included
    *("certified", "explored", "explored_differing"),
    *("shed", "expired"),  # refused by the local model: its queue was full, or the deadline was too near
)
NO_MODEL = {"swaps": 0, "loads": 0, "evictions": 0}  # of a model without a bundle


def new_counters() -> dict[str, int]:
    """The counters of a model before its first request."""
    return dict.fromkeys(COUNTERS, 0)
