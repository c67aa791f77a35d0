"""Errors of database drivers: their text, and what they mean."""

from __future__ import annotations

_READ_ONLY, _NO_RIGHT = "25006", "42501"  # PostgreSQL's codes: a standby or a setting; the user's rights


def driver_text(error: Exception) -> str:
    """The driver's message in one line: PostgreSQL's have several, with tabs."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def refuses_changes(error: BaseException | None) -> bool:
    """True where PostgreSQL changes nothing for this connection: on a standby, or for a user without the right."""
    return getattr(error, "sqlstate", "") in (_READ_ONLY, _NO_RIGHT)
