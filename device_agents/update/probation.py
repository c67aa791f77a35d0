"""Whether a bundle in probation answers live traffic well enough to stay. Rules only."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

FEW_REQUESTS = 20  # fewer say nothing about a mean, and little about a share


class ProbationLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What live traffic must stay within; golden answers are judged besides.

    Attributes:
        max_error_share: Of the requests that the model ran: failed in the runtime, or answered with NaN where the
            request had none. 0 to 1.
        max_latency_ms: Mean time of an answer, waiting in the queue included; 0 for no limit.
        requests: So many within the limits end probation before its time; 0 for its time in any case.
    """

    max_error_share: float = 0.05
    max_latency_ms: float = 0.0
    requests: int = 0


def enough(before: Mapping[str, float], after: Mapping[str, float], limits: ProbationLimits) -> bool:
    """True when the model has run as many live requests as probation asks for; counters as for `live_faults`."""
    return 0 < limits.requests <= after.get("runs", 0.0) - before.get("runs", 0.0)


def live_faults(
    before: Mapping[str, float], after: Mapping[str, float], limits: ProbationLimits, *, final: bool
) -> list[str]:
    """Every reason why a model's live answers are outside the limits; none where nobody asked.

    Args:
        before: Rising counters of the model at its activation: `runs`, `run_us`, `runtime_errors`, `unusable`,
            `crashes`. A crash over joined requests that were then answered one by one failed none of them, and counts
            all the same.
        after: The same now.
        limits: What they must stay within.
        final: False while more is to come: then the first few requests are not judged yet.
    """

    def since(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    runs, unusable, crashes = since("runs"), since("unusable"), since("crashes")
    errors = max(since("runtime_errors"), crashes)
    crashed = f" (its process crashed {crashes:.0f} times)" if crashes else ""
    faults = []
    if errors + unusable > limits.max_error_share * runs and (final or runs >= FEW_REQUESTS):
        faults.append(
            f"of {runs:.0f} live requests {errors:.0f} failed in the runtime{crashed} and"
            f" {unusable:.0f} were answered with NaN, at most {limits.max_error_share:.1%} may"
        )
    mean_ms = since("run_us") / 1000 / runs if runs else 0.0
    if 0 < limits.max_latency_ms < mean_ms and runs >= FEW_REQUESTS:
        most = f"at most {limits.max_latency_ms:g} ms are allowed"
        faults.append(f"{runs:.0f} live requests took {mean_ms:.3g} ms on average, {most}")
    return faults
