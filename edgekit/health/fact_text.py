"""Pure: a fact that a device reports, as text for people."""

from __future__ import annotations

from typing import Any

NOTHING = "-"


def fact_text(value: Any) -> str:
    """The fact on one line, in the words of filters; a dash where it is empty."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {fact_text(one)}" for key, one in sorted(value.items())) or NOTHING
    if isinstance(value, list | tuple):
        return " ".join(map(fact_text, value)) or NOTHING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return NOTHING if value in (None, "") else str(value)
