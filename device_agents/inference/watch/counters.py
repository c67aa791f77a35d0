"""The counters of each model in the inference service. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COUNTERS = (
    *("requests", "local", "cloud", "degraded", "errors", "cloud_errors"),
    *("runs", "run_us", "runtime_errors", "unusable"),  # of the local model; `run_us`: microseconds, queue included
    *("certified", "explored", "explored_differing"),
    *("shed", "expired"),  # refused by the local model: its queue was full, or the deadline was too near
)
NO_MODEL = {"swaps": 0, "loads": 0, "evictions": 0}  # of a model without a bundle


def new_counters() -> dict[str, int]:
    """The counters of a model before its first request; those of reasons begin with the first answer of each."""
    return dict.fromkeys(COUNTERS, 0)


def count_answer(counters: dict[str, int], said: Mapping[str, Any]) -> str:
    """Count an answer by the route and the reason in its parameters. Returns the route."""
    route: str = said["edgekit_route"]
    counters[route] += 1
    reason = f"reasons.{said['edgekit_reason']}"
    counters[reason] = counters.get(reason, 0) + 1
    return route
