"""The newest lines of the log, for the command `logs`."""

from __future__ import annotations

import logging

import pytest

from device_agents.remote.logs import MAX_BYTES, MAX_LINE, LogTail
from edgekit.mqtt.command_arguments import MAX_LINES, LogsArguments


@pytest.fixture
def tail() -> LogTail:
    return LogTail()


def put(tail: LogTail, text: str, *args: object) -> None:
    tail.handle(logging.LogRecord("n", logging.INFO, "f", 1, text, args, None))


async def test_the_newest_lines_come_in_their_order(tail: LogTail) -> None:
    """No more than were asked for, each with time, level and logger."""
    for number in range(5):
        put(tail, "line %d", number)
    answer = await tail.answer(LogsArguments(2))
    assert [line.rpartition("INFO ")[2] for line in answer.detail["lines"]] == ["n: line 3", "n: line 4"]


def test_memory_and_answers_are_bounded(tail: LogTail) -> None:
    """A fixed number of lines of a fixed length are kept, and an answer has at most MAX_BYTES."""
    for _ in range(3 * MAX_LINES):
        put(tail, "ü" * 5000)
    assert len(tail._lines) == MAX_LINES
    assert max(map(len, tail._lines)) == MAX_LINE
    assert sum(len(line.encode()) + 1 for line in tail.newest(MAX_LINES)) <= MAX_BYTES


def test_control_characters_and_bad_records_do_no_harm(tail: LogTail, capsys: pytest.CaptureFixture[str]) -> None:
    """What a foreign name smuggles into the log cannot steer a terminal, nor make a line of its own."""
    put(tail, "red \x1b[31m\ttext\nsecond \ud800 line")
    assert len(tail.newest(9)) == 1
    assert all(line.isprintable() for line in tail.newest(9))
    put(tail, "%d", "no number")
    assert len(tail.newest(9)) == 1
