"""Lines of the log."""

from __future__ import annotations

import logging

import pytest

from edgekit.log_lines import LineFormatter, log_to_stderr


def test_text_from_elsewhere_stays_in_its_line() -> None:
    """A cloud tier's reason with a line break wrote a line of its own into the log, and colours into the terminal."""
    record = logging.LogRecord("n", logging.ERROR, "f", 1, "refused: %s", ("a\n2026 ERROR forged\x1b[31m",), None)
    line = LineFormatter().format(record)
    assert line.endswith(r"ERROR n: refused: a\n2026 ERROR forged\x1b[31m")
    assert line.isprintable()


def test_a_traceback_follows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines are the interpreter's, and stay as they are."""
    root = logging.getLogger()
    before, level, root.handlers = root.handlers, root.level, []
    try:
        log_to_stderr(logging.WARNING)
        try:
            raise ValueError("odd")
        except ValueError:
            logging.getLogger("n").exception("failed\rhere")
    finally:
        root.handlers, root.level = before, level
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(r"ERROR n: failed\rhere")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: odd"
