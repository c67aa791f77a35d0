"""The settings that the command `set` may change, and the values that it may give them. Pure rules.

The settings file takes wider ranges: whoever edits it is at the device. A command reaches a whole fleet, where a value
that silences devices or refuses every bundle is noticed too late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from edgekit.bounds import number_fault
from edgekit.errors import DataError
from edgekit.hours import parse_hours

DAY, WEEK = 86_400.0, 7 * 86_400.0
_MEMORY = "each copy and each waiting request takes memory"
_FLOOD = "more often, reports fill the broker; more seldom, the device counts as lost"


class Allowed(NamedTuple):
    """The values that `set` may give a setting.

    Attributes:
        kind: Its type, as in `AgentSettings`.
        low, high: The bounds of a number, both included.
        reason: What happens outside of them.
        zero: Whether 0 is allowed too; it stands for no limit.
    """

    kind: Any
    low: float = 0
    high: float = 0
    reason: str = ""
    zero: bool = False


# Intervals, limits and times. None of them concerns trust, keys, addresses, what leaves the device, or the cloud tier.
SETTABLE: Mapping[str, Allowed] = {
    "heartbeat_seconds": Allowed(float, 1, DAY, _FLOOD),
    "telemetry_seconds": Allowed(float, 1, DAY, _FLOOD),
    "threads": Allowed(int, 1, 256, "more threads than processors make a model slower"),
    "queue_limit": Allowed(int, 1, 100_000, _MEMORY),
    "deadline_ms": Allowed(float, 1, DAY * 1000, "no model answers within less", zero=True),
    "instances": Allowed(int, 1, 64, _MEMORY),
    "batch": Allowed(int | Literal["auto"], 1, 1024, "that many rows wait for one run"),
    "run_timeout_seconds": Allowed(
        float, 0.1, 3600, "below it, ordinary runs are ended; above it, a run that hangs is not"
    ),
    "memory_budget_mib": Allowed(int, 16, 2**20, "below it, no model fits", zero=True),
    "max_streams": Allowed(int, 1, 100_000, "each stream takes memory"),
    "stream_idle_seconds": Allowed(float, 1, WEEK, "below it, streams end between two requests; above it, none ends"),
    "drain_seconds": Allowed(float, 0, 3600, "a stop waits for so long"),
    "download_bytes_per_second": Allowed(int, 1024, 2**40, "below it, a block takes more than a minute", zero=True),
    "download_urls": Allowed(bool),
    "download_budget": Allowed(float, 1, 100, "a bundle that always arrives damaged is fetched so many times"),
    "quiet_hours": Allowed(str),
    "metered": Allowed(bool),
    "metered_deployment_bytes": Allowed(int, 0, 2**50, "no bundle is larger"),
    "max_bundle_bytes": Allowed(int, 4096, 2**40, "below it, every bundle is refused"),
    "deployment_attempts": Allowed(int, 1, 1_000_000, "a deployment that always fails is tried so many times"),
    "deployment_hours": Allowed(
        float, 0.1, 87_600, "below it, deployments end before they can succeed; above it, none ends"
    ),
    "step_timeout_seconds": Allowed(
        float, 10, WEEK, "below it, ordinary steps fail; above it, a step that hangs does not end"
    ),
    "crash_watch_seconds": Allowed(float, 1, WEEK, "crashes of so long after a commit roll back"),
    "probation_seconds": Allowed(float, 0, WEEK, "a deployment is in probation for so long, and has no outcome before"),
    "probation_requests": Allowed(int, 0, 1_000_000_000, "no probation sees more requests"),
    "probation_max_error_share": Allowed(float, 0, 1, "it is a share"),
    "probation_max_latency_ms": Allowed(float, 0.1, 3_600_000, "below it, every bundle is rolled back", zero=True),
}


def check_settable(values: Mapping[str, str]) -> None:
    """Check the changes of ``set``: text by key; an empty text takes a value back.

    Raises:
        DataError: there is none, a key may not be set, or a value is not of the setting's type or out of its range.
    """
    if not values:
        raise DataError("set changes nothing: give KEY=VALUE, or KEY= to take a value back")
    if odd := sorted(set(values) - set(SETTABLE)):
        raise DataError(
            f"{', '.join(odd)[:100]} cannot be set remotely", advice=f"Settings that can: {', '.join(SETTABLE)}."
        )
    faults = [fault for key, text in values.items() if text and (fault := _fault(key, text))]
    if faults:
        raise DataError("; ".join(faults))


def _fault(key: str, text: str) -> str:
    """Why a setting cannot have this value; empty if it can."""
    allowed = SETTABLE[key]
    try:
        value = msgspec.convert(text, allowed.kind, strict=False)
        if key == "quiet_hours":
            parse_hours(text, "quiet hours", "pause the rollout to stop downloads")
    except (msgspec.ValidationError, ValueError) as error:
        return f"{key} cannot be {text[:60]!r}: {error}"
    if allowed.kind in (bool, str) or isinstance(value, str) or (allowed.zero and value == 0):
        return ""
    fault = number_fault(key, value, allowed.low, allowed.high)
    return f"{fault}{', or 0 for no limit' if allowed.zero else ''} ({allowed.reason})" if fault else ""
