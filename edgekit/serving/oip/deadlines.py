"""The deadline of a request: its parameter, its bounds and its error message, for every server and for the agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import DataError

DEADLINE_PARAMETER = "edgekit_deadline_ms"
MAX_DEADLINE_MS = 24 * 3600 * 1000.0


def deadline_ms(parameters: Mapping[str, Any]) -> float | None:
    """The deadline in a request's parameters, in milliseconds from now; None where they set none.

    Raises:
        DataError: as `check_deadline_ms`.
    """
    value = parameters.get(DEADLINE_PARAMETER)
    return None if value is None else check_deadline_ms(value)


def check_deadline_ms(value: object) -> float:
    """`value` as a deadline in milliseconds.

    Raises:
        DataError: it is not a number above 0 and at most one day.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_DEADLINE_MS:
        raise DataError(
            f"{DEADLINE_PARAMETER} is {repr(value)[:40]}, expected a number above 0 and at most {MAX_DEADLINE_MS:.0f}"
        )
    return float(value)
