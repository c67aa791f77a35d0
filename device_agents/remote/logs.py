"""The newest lines of the agent's log, kept in memory for the command `logs`."""

from __future__ import annotations

import logging
from collections import deque

from device_agents.remote.answer import CommandAnswer
from edgekit.log_lines import LineFormatter
from edgekit.mqtt.command_arguments import MAX_LINES, LogsArguments

MAX_LINE = 400  # characters
MAX_BYTES = 30_000  # of an answer, so that the control side stores it whole


class LogTail(logging.Handler):
    """A log handler that keeps the newest `MAX_LINES` lines, each of at most `MAX_LINE` characters."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self._lines: deque[str] = deque(maxlen=MAX_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record. A traceback becomes several lines."""
        try:
            text = self.format(record)
        except Exception:  # a logging boundary, as in the standard library: a bad log call must not end its caller
            self.handleError(record)
            return
        self._lines.extend(printable_line(line) for line in text.splitlines())

    def newest(self, count: int) -> list[str]:
        """The newest lines, the oldest of them first, of at most `MAX_BYTES` together."""
        chosen: list[str] = []
        size = 0
        for line in reversed(list(self._lines)[-count:]):
            size += len(line.encode()) + 1
            if size > MAX_BYTES:
                break
            chosen.append(line)
        return chosen[::-1]

    async def answer(self, arguments: LogsArguments) -> CommandAnswer:
        """Run the command `logs`."""
        lines = self.newest(arguments.lines)
        return CommandAnswer(True, f"{len(lines)} line(s)", {"lines": lines})


def printable_line(line: str) -> str:
    """A line without control characters and lone surrogates, cut to `MAX_LINE`."""
    return "".join(one if one.isprintable() else " " for one in line[:MAX_LINE])
