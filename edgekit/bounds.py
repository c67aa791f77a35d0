"""Bounds of numbers that come from outside: flags, settings, messages and rows of databases. Pure rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec

MAX_INTEGER = 2**53  # the largest integer that SQLite, PostgreSQL and JSON readers all store exactly
MAX_ROW = 2**31 - 1  # the largest number of a row: PostgreSQL counts rows with 32 bits
MAX_SECONDS = 1e10  # three hundred years; release 0.1.0 stored deadlines of a hundred
CLOCKS_DIFFER_SECONDS = 300.0  # the clocks of two controllers by less; a later time is that of a clock that was ahead
MAX_DATE = 1e11  # wall clock seconds; later dates have a year of more than four digits


def number_fault(name: str, value: float, low: float, high: float, *, above: bool = False) -> str:
    """Why `value` is not a number from `low` to `high`; empty if it is one.

    Args:
        name: Name of the value, for the message.
        value: The number; NaN and infinities are never in range.
        low, high: The bounds, both included.
        above: True where `low` itself is not allowed.
    """
    if math.isfinite(value) and low <= value <= high and not (above and value == low):
        return ""
    expected = f"more than {low:.15g} and at most {high:.15g}" if above else f"{low:.15g} to {high:.15g}"
    return (
        f"{name} is {value:g}, expected {expected}"
        if isinstance(value, float)
        else f"{name} is {value}, expected {expected}"
    )


def not_finite(value: Any, name: str = "") -> Iterator[str]:
    """The names of the numbers inside `value` (a struct, mapping, sequence or number) that no program can compute with.

    These are NaN, infinities, and integers beyond MAX_INTEGER.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            yield name
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            yield name
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from not_finite(getattr(value, field), f"{name}.{field}" if name else field)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from not_finite(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from not_finite(one, name)
