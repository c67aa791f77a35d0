"""How long a request may take, as clients say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import DataError

PARAMETER = "edgekit_deadline_ms"
MAX_DEADLINE_MS = 24 * 3600 * 1000.0


def deadline_ms(parameters: Mapping[str, Any]) -> float | None:
    """The milliseconds that a request's parameters allow it; None where they say nothing.

    Raises:
        DataError: it is no number above 0 and up to a day.
    """
    value = parameters.get(PARAMETER)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_DEADLINE_MS:
        raise DataError(
            f"{PARAMETER} is {str(value)[:40]!r}, expected a number above 0 and at most {MAX_DEADLINE_MS:.0f}"
        )
    return float(value)
