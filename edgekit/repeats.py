"""Limits for log lines and events that a stranger or a fault can cause without end: so many of a kind in a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

MAX_KEYS = 10_000
LOG_SECONDS = 60.0
LOG_LINES = 60  # of one place in the code within LOG_SECONDS: an update has eleven steps, a device several models
_DECIDED = "edgekit_allowed"  # attribute of a log record


class Turn(NamedTuple):  # no msgspec: an agent's start imports this before numpy
    """Whether something may be said now.

    Attributes:
        allowed: False where it is left out.
        last: True for the last one that is said in this time.
        left_out: How many were left out before this one, in the time before.
    """

    allowed: bool
    last: bool = False
    left_out: int = 0


class Repeats:
    """Allows the first `most` of each key in a time of `seconds`, and counts the others.

    Args:
        most: How many of a key are allowed.
        seconds: Length of the time, which begins with the first of them.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._seen: dict[Hashable, tuple[float, int]] = {}  # key -> (begin of the time, how many came)

    def take(self, key: Hashable, now: float) -> Turn:
        """Count one of `key`; `now` is monotonic seconds."""
        begin, count = self._seen.get(key, (now, 0))
        left_out = 0
        if now - begin >= self._seconds:
            left_out = max(0, count - self._most)
            begin, count = now, 0
        if key not in self._seen and len(self._seen) >= MAX_KEYS:
            self._seen.clear()
        self._seen[key] = begin, count + 1
        return Turn(count < self._most, count + 1 == self._most, left_out)


class LogFilter(logging.Filter):
    """Lets a place in the code write LOG_LINES lines a minute.

    The last of them says so, and the next one says how many were left out. What is left out once is left out by every
    handler with such a filter. Lines of level DEBUG are not counted: they are asked for.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._repeats = Repeats(LOG_LINES, LOG_SECONDS)

    def filter(self, record: logging.LogRecord) -> bool:
        """False where the record is left out; its text may be continued."""
        if record.levelno <= logging.DEBUG:
            return True
        decided = getattr(record, _DECIDED, None)  # by the filter of another handler
        if decided is None:
            turn = self._repeats.take((record.name, record.pathname, record.lineno), self._clock())
            decided = turn.allowed
            setattr(record, _DECIDED, decided)
            if text := _continued(turn):
                record.msg, record.args = record.getMessage() + text, None
        return bool(decided)


def _continued(turn: Turn) -> str:
    text = ""
    if turn.left_out:
        text += f" ({turn.left_out} more lines like this one were left out)"
    if turn.last:
        text += " (more lines like this one are left out for a minute)"
    return text


def limit_log_lines() -> None:
    """Give each handler of the root logger a LogFilter."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, LogFilter) for one in handler.filters):
            handler.addFilter(LogFilter())
