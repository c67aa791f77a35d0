"""Rules that judge the live requests of a bundle in probation."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

FEW_REQUESTS = 20  # fewer requests are too few for a mean, and for a share while more will come


class ProbationLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for live requests in probation; golden samples are judged separately.

    Attributes:
        max_error_share: Largest share (0 to 1) of the requests run by the model that may fail in the runtime, or be
            answered with NaN though the request has none.
        max_latency_ms: Largest mean latency in milliseconds, waiting in the queue included; 0 for no limit.
        requests: After this many requests within the limits, probation ends early; 0 for no early end.
    """

    max_error_share: float = 0.05
    max_latency_ms: float = 0.0
    requests: int = 0


def enough(before: Mapping[str, float], after: Mapping[str, float], limits: ProbationLimits) -> bool:
    """True when the model has run as many live requests as probation requires; counters as for `live_faults`."""
    return 0 < limits.requests <= after.get("runs", 0.0) - before.get("runs", 0.0)


def live_faults(
    before: Mapping[str, float], after: Mapping[str, float], limits: ProbationLimits, *, final: bool
) -> list[str]:
    """Every reason why a model's live requests are outside the limits; empty without requests.

    Args:
        before: Rising counters of the model at its activation: `runs`, `run_us`, `runtime_errors`, `unusable`,
            `crashes`. A crash counts as an error also when all of its requests were answered one by one afterwards.
        after: The counters now.
        limits: The limits.
        final: False while probation continues; then fewer than FEW_REQUESTS are not judged.
    """

    def increase(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    runs, unusable, crashes = increase("runs"), increase("unusable"), increase("crashes")
    errors = max(increase("runtime_errors"), crashes)
    crashed = f" (its process crashed {crashes:.0f} times)" if crashes else ""
    faults = []
    if errors + unusable > limits.max_error_share * runs and (final or runs >= FEW_REQUESTS):
        faults.append(
            f"of {runs:.0f} live requests {errors:.0f} failed in the runtime{crashed} and"
            f" {unusable:.0f} were answered with NaN, at most {limits.max_error_share:.1%} may"
        )
    mean_ms = increase("run_us") / 1000 / runs if runs else 0.0
    if 0 < limits.max_latency_ms < mean_ms and runs >= FEW_REQUESTS:
        most = f"at most {limits.max_latency_ms:g} ms are allowed"
        faults.append(f"{runs:.0f} live requests took {mean_ms:.3g} ms on average, {most}")
    return faults
