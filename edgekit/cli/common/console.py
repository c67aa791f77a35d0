"""Settings of a run, results on stdout, progress and notes on stderr, and errors for missing extras."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.errors import MissingExtraError, SettingsError
from edgekit.log_lines import printable as printable

if TYPE_CHECKING:
    from edgekit.settings import ControlSettings

DEFAULT_CONFIG = Path("edgekit.toml")
QUIET_SECONDS = 2.0  # shorter work shows no progress
PLAIN_SECONDS = 10.0  # between two lines of progress when stderr is not a terminal
OWN_PACKAGES = ("edgekit", "converters", "device_agents")

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """Add ``--json`` (parameter ``as_json``)."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def dry_run_option(function: F) -> F:
    """Add ``--dry-run``."""
    return click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")(function)


def control_settings(**flags: Any) -> ControlSettings:
    """Load the settings: first --config or ./edgekit.toml, then the environment, then `flags`, which win."""
    from edgekit.settings import ControlSettings, load_settings  # commands of a device have settings of their own

    context = click.get_current_context(silent=True)
    named = context.find_root().params.get("config") if context else None
    file = named or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    return load_settings(ControlSettings, file=file, flags=flags)


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failed import of a third-party package into an error with the pip command.

    Raises:
        MissingExtraError: a package of the extra `extra` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in OWN_PACKAGES:
            raise
        raise MissingExtraError(package, extra) from error


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Report a SettingsError as wrong usage: exit status 2, with the command's usage line.

    Raises:
        click.UsageError: a SettingsError was raised inside.
    """
    try:
        yield
    except SettingsError as error:
        if "\n" in str(error):  # a caret must end its line
            raise click.UsageError(f"{error}\n{error.advice}") from error
        raise click.UsageError(f"{error}. {error.advice}".rstrip(" .") + ".") from error


def print_json(value: Any) -> None:
    """Print a result as JSON with sorted keys on stdout."""
    import msgspec  # only for JSON: see device_agents.cli.run

    data = msgspec.json.encode(value, order="sorted", enc_hook=str)
    click.echo(msgspec.json.format(data, indent=2).decode())


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, err: bool = False) -> None:
    """Print a table with aligned columns on stdout, or on stderr with `err`; columns of numbers are right-aligned."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    columns = [[row[i] for row in cells if row[i] != "-"] for i in range(len(headers))]  # a dash stands for no value
    numeric = [all(map(_is_number, column)) and bool(column) for column in columns]
    for row in [list(headers), *cells]:
        parts = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)]
        click.echo("  ".join(parts).rstrip(), err=err)


def note(text: str) -> None:
    """Print a line on stderr. Where that is a file on a full disk, the line is lost, and the command goes on."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


@contextlib.contextmanager
def step(label: str, *, plain_seconds: float = PLAIN_SECONDS) -> Iterator[Callable[[int, int, float | None], None]]:
    """Print one step of long work on one line of stderr, and the time that it took.

    Args:
        label: Text of the line.
        plain_seconds: Time between two lines of progress when stderr is not a terminal.

    Yields:
        A function that shows progress of long steps. Its arguments are the number of parts done, the number of parts in
        total, and the seconds left; None if they are not known.
    """
    line = _StepLine(label, plain_seconds)
    outcome = "failed after "
    try:
        yield line.show
        outcome = ""
    except KeyboardInterrupt:
        outcome = "stopped after "
        raise
    finally:
        line.end(outcome)


class _StepLine:
    """The line of one step; on a terminal it is rewritten in place."""

    def __init__(self, label: str, plain_seconds: float) -> None:
        self._label, self._plain_seconds = label, plain_seconds
        self._start = self._shown_at = time.monotonic()
        self._live = sys.stderr.isatty()
        self._label_only = True  # no progress was shown yet
        click.echo(f"{label} ... ", nl=False, err=True)

    def show(self, done: int, total: int, left: float | None) -> None:
        """Show that `done` of `total` parts are done and the others take `left` seconds."""
        now = time.monotonic()
        if left is None or total < 2 or max(left, now - self._start) < QUIET_SECONDS:
            return
        if not self._live and now - self._shown_at < self._plain_seconds:
            return
        text = f"{done} of {total} done, about {left:.0f} s for the rest; more may follow"
        click.echo(self._line_start() + text, nl=not self._live, err=True)
        self._shown_at, self._label_only = now, False

    def end(self, outcome: str) -> None:
        """Finish the line with the time that the step took."""
        start = "" if self._label_only else self._line_start()
        click.echo(f"{start}{outcome}{time.monotonic() - self._start:.1f} s", err=True)

    def _line_start(self) -> str:
        """The label again, to rewrite the line on a terminal or to begin a new line; empty if the label is there."""
        if self._live:
            return f"\r\x1b[K{self._label} ... "
        return "" if self._label_only else f"{self._label} ... "


@contextlib.contextmanager
def end_on_second_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first Ctrl-C; the second one ends the process at once, even during clean-up."""

    def first_interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    before = signal.signal(signal.SIGINT, first_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class ProgressLine:
    """A progress line on stderr with the time left; on a pipe, one line every 10 %. Short work shows no line."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start = time.monotonic()
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are done."""
        spent = time.monotonic() - self._start
        share = done / total if total else 1.0
        terminal = sys.stderr.isatty()
        if (spent < QUIET_SECONDS and self._shown < 0) or (int(share * 10) == self._shown and not terminal):
            return
        self._shown = int(share * 10)
        left = f", {spent / share - spent:.0f} s left" if 0 < share < 1 else ""
        text = f"{self._label}: {share:4.0%}{left}"
        click.echo(f"\r\x1b[K{text}" if terminal else text, nl=done >= total or not terminal, err=True)


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%").replace(",", ""))
    except ValueError:
        return False
    return any(character.isdigit() for character in text)


def ignore_hangup() -> None:
    """Let a server outlive the terminal or session that started it; there is nothing to reload."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
