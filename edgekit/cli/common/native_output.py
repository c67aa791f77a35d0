"""Hides what native libraries print on stderr, unless --verbose is given."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

import click


def is_verbose() -> bool:
    """True if the command was given --verbose."""
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("verbose"))


@contextlib.contextmanager
def native_output_hidden() -> Iterator[None]:
    """Keep the output of native libraries on the process's stderr out of the progress lines.

    Python's own stderr still goes to the terminal. With --verbose nothing is hidden.
    """
    try:
        is_process_stderr = sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):  # stderr was replaced by another object
        is_process_stderr = False
    if is_verbose() or not is_process_stderr:
        yield
        return
    python_stderr = sys.stderr
    saved = os.dup(2)
    with (
        tempfile.TemporaryFile(prefix="edgekit-native-") as log,
        os.fdopen(os.dup(saved), "w", buffering=1, encoding=sys.stderr.encoding) as terminal,
    ):
        os.dup2(log.fileno(), 2)
        sys.stderr = terminal
        try:
            yield
        finally:
            sys.stderr = python_stderr
            os.dup2(saved, 2)
            os.close(saved)
