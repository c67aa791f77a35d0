"""The form of log lines: one line for each message, whatever other machines wrote into it."""

from __future__ import annotations

import logging
import sys


def printable(text: str) -> str:
    """Escape control characters and line breaks: text from other machines must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LineFormatter(logging.Formatter):
    """Time, level, logger and message in one line, so that no foreign text forges a line. Tracebacks follow it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is the standard library's
        """The line of a record."""
        return printable(super().formatMessage(record))


def log_to_stderr(level: int) -> None:
    """Write the process's log to stderr, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler])
