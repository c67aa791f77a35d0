"""Messages of database drivers, for messages of this program."""

from __future__ import annotations


def driver_text(error: Exception) -> str:
    """The driver's message in one line: PostgreSQL's have several, with tabs."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
