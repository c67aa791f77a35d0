"""Limits of what repeats."""

from __future__ import annotations

import logging

from edgekit.repeats import LOG_LINES, LOG_SECONDS, MAX_KEYS, LogFilter, Repeats, Turn


def test_the_first_ones_of_each_key_are_allowed_and_the_others_are_counted() -> None:
    """The next time begins with the first one after the end of the last, which says how many were left out."""
    repeats = Repeats(2, 60.0)
    assert [repeats.take("a", now) for now in (0.0, 1.0, 2.0, 3.0)] == [
        Turn(True), Turn(True, last=True), Turn(False), Turn(False),
    ]  # fmt: skip
    assert repeats.take("b", 3.0).allowed
    assert repeats.take("a", 60.0) == Turn(True, left_out=2)
    assert repeats.take("a", 61.0) == Turn(True, last=True)


def test_keys_without_end_take_no_memory_without_end() -> None:
    """Keys may come from strangers."""
    repeats = Repeats(1, 60.0)
    for number in range(3 * MAX_KEYS):
        assert repeats.take(number, 0.0).allowed
    assert len(repeats._seen) <= MAX_KEYS


def test_a_flood_of_one_line_leaves_the_other_lines_readable() -> None:
    """Two handlers show the same lines, each continued once."""
    lines: list[list[str]] = [[], []]
    now = [0.0]
    logger = logging.Logger("flooded")
    for shown in lines:
        handler = logging.Handler()
        handler.emit = lambda record, shown=shown: shown.append(record.getMessage())  # type: ignore[method-assign]
        handler.addFilter(LogFilter(lambda: now[0]))
        logger.addHandler(handler)

    def junk(number: int) -> None:
        logger.warning("junk %d", number)

    for number in range(1000):
        junk(number)
    logger.error("the disk is full")
    now[0] = LOG_SECONDS
    junk(1000)
    first, second = lines
    assert first == second
    assert len(first) == LOG_LINES + 2
    assert first[LOG_LINES - 1] == f"junk {LOG_LINES - 1} (more lines like this one are left out for a minute)"
    assert first[LOG_LINES:] == [
        "the disk is full", f"junk 1000 ({1000 - LOG_LINES} more lines like this one were left out)",
    ]  # fmt: skip


def test_debug_lines_are_not_counted() -> None:
    """Whoever asks for them wants all."""
    shown = []
    logger = logging.Logger("asked", logging.DEBUG)
    handler = logging.Handler()
    handler.emit = shown.append  # type: ignore[method-assign]
    handler.addFilter(LogFilter())
    logger.addHandler(handler)
    for number in range(2 * LOG_LINES):
        logger.debug("step %d", number)
    assert len(shown) == 2 * LOG_LINES
