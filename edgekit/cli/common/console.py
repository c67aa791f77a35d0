"""What commands share: settings, results on stdout, progress and notes on stderr, missing extras."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from edgekit.errors import MissingExtraError, SettingsError
from edgekit.settings import ControlSettings, load_settings

DEFAULT_CONFIG = Path("edgekit.toml")
QUIET_SECONDS = 2.0
PLAIN_SECONDS = 10.0  # between lines of progress where there is no terminal
OURS = ("edgekit", "converters", "device_agents")

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """Add ``--json`` (parameter ``as_json``)."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def dry_run_option(function: F) -> F:
    """Add ``--dry-run``."""
    return click.option("--dry-run", is_flag=True, help="Print what would be done and change nothing.")(function)


def control_settings(**flags: Any) -> ControlSettings:
    """Settings of this run: --config (else edgekit.toml here, where there is one), environment, then `flags`."""
    context = click.get_current_context(silent=True)
    chosen = context.find_root().params.get("config") if context else None
    file = chosen or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    return load_settings(ControlSettings, file=file, flags=flags)


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failed import of an outside package into an error that names the pip line.

    Raises:
        MissingExtraError: a package that `extra` brings is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in OURS:
            raise
        raise MissingExtraError(package, extra) from error


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Turn an error in what was typed into wrong usage: exit status 2, with the command's usage line.

    Raises:
        click.UsageError: a SettingsError was raised inside.
    """
    try:
        yield
    except SettingsError as error:
        raise click.UsageError(f"{error}. {error.advice}".rstrip(" .") + ".") from error


def printable(text: str) -> str:
    """`text` on one line and without control characters: devices say things that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any) -> None:
    """Print a result for machines: JSON with sorted keys on stdout."""
    data = msgspec.json.encode(value, order="sorted", enc_hook=str)
    click.echo(msgspec.json.format(data, indent=2).decode())


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, err: bool = False) -> None:
    """Print a result for people: aligned columns on stdout, or stderr with `err`; numbers are set right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    numeric = [all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(headers))]
    for row in [list(headers), *cells]:
        parts = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)]
        click.echo("  ".join(parts).rstrip(), err=err)


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)


@contextlib.contextmanager
def step(label: str) -> Iterator[Callable[[int, int, float | None], None]]:
    """Announce one step of long work on one line of stderr, with its time when it ends.

    What it gives takes how many parts of the step are done, of how many, and the seconds that the others take, None
    where nobody knows. It shows them on the same line, without a terminal on lines of their own, for long steps only.
    """
    line = _StepLine(label)
    try:
        yield line.tell
    except KeyboardInterrupt:
        line.end("stopped after ")
        raise
    except BaseException:
        line.end("failed after ")
        raise
    line.end("")


class _StepLine:
    """The line of one step."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start = self._told = time.monotonic()
        self._live = sys.stderr.isatty()
        self._whole = True  # what the line holds is its label only
        click.echo(f"{label} ... ", nl=False, err=True)

    def tell(self, done: int, total: int, left: float | None) -> None:
        """Show that `done` of `total` parts are done and the rest takes `left` seconds."""
        now = time.monotonic()
        if left is None or total < 2 or max(left, now - self._start) < QUIET_SECONDS:
            return
        if not self._live and now - self._told < PLAIN_SECONDS:
            return
        text = f"{done} of {total} done, about {left:.0f} s for the rest; more may follow"
        start = f"\r\x1b[K{self._label} ... " if self._live else "" if self._whole else f"{self._label} ... "
        click.echo(start + text, nl=not self._live, err=True)
        self._told, self._whole = now, False

    def end(self, how: str) -> None:
        """Close the line with the time that the step took."""
        start = "" if self._whole else f"\r\x1b[K{self._label} ... " if self._live else f"{self._label} ... "
        click.echo(f"{start}{how}{time.monotonic() - self._start:.1f} s", err=True)


@contextlib.contextmanager
def ending_at_the_second() -> Iterator[None]:
    """Leave the first Ctrl-C to whoever catches it; the second ends the process at once, whatever it is cleaning up."""

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # it gets no signals
        return
    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class ProgressLine:
    """A progress line on stderr with the time left; on a pipe a plain line every 10 %. Short work says nothing."""

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
    return bool(text) and text.rstrip("%").replace(".", "", 1).replace("-", "", 1).isdigit()
