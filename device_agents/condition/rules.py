"""Pure rules: which changes of a device's condition are worth a report."""

from __future__ import annotations

from typing import Any

import msgspec

STEP_CELSIUS = 5
STEP_SHARE = 0.1  # of the free disk or memory that was reported last
STEP_MIB = 64
_SPACES = ("disk_free_mib", "memory_free_mib")
_SLOW = ("uptime_hours",)  # sent with the next report; its change alone brings none


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """The changing facts of a device; None, or an empty text, where the system does not tell.

    Attributes:
        temperature_celsius: Of the warmest thermal zone.
        throttled: Why the processor is slowed down now: ``no``, or reasons such as ``under-voltage,frequency-capped``.
        throttled_since_boot: The same reasons, since the machine has booted.
        uptime_hours: Whole hours since the machine has booted.
        clock_synchronised: Whether the kernel's clock follows a time server.
        disk_free_mib: Free space where the agent keeps its state.
        memory_free_mib: Memory that programs can still get.
    """

    temperature_celsius: int | None = None
    throttled: str = ""
    throttled_since_boot: str = ""
    uptime_hours: int | None = None
    clock_synchronised: bool | None = None
    disk_free_mib: int | None = None
    memory_free_mib: int | None = None


def steadied(reported: Condition, measured: Condition) -> Condition:
    """The condition to report: what was reported last, with each value that has changed by at least one step.

    A step is `STEP_CELSIUS`, or `STEP_SHARE` of the free space and at least `STEP_MIB`; other values change at once.
    """
    kept: dict[str, Any] = {}
    last, now = reported.temperature_celsius, measured.temperature_celsius
    if last is not None and now is not None and abs(now - last) < STEP_CELSIUS:
        kept["temperature_celsius"] = last
    for name in _SPACES:
        last, now = getattr(reported, name), getattr(measured, name)
        if last is not None and now is not None and abs(now - last) < max(STEP_MIB, STEP_SHARE * last):
            kept[name] = last
    return msgspec.structs.replace(measured, **kept)


def worth_a_report(reported: Condition, steady: Condition) -> bool:
    """True if a report should be sent now, and not only with the next heartbeat."""
    names = [name for name in Condition.__struct_fields__ if name not in _SLOW]
    return any(getattr(reported, name) != getattr(steady, name) for name in names)


def facts_of(condition: Condition) -> dict[str, Any]:
    """The known values, as facts."""
    return {name: value for name, value in msgspec.structs.asdict(condition).items() if value not in (None, "")}
