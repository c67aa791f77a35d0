"""What commands share: settings, results on stdout, progress and notes on stderr, missing extras."""

from __future__ import annotations

import contextlib
import sys
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


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a result for people: aligned columns on stdout; numbers are set right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    numeric = [all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(headers))]
    for row in [list(headers), *cells]:
        parts = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)]
        click.echo("  ".join(parts).rstrip())


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)


@contextlib.contextmanager
def step(label: str) -> Iterator[None]:
    """Announce one step of long work on one line of stderr, with its time when it ends."""
    click.echo(f"{label} ... ", nl=False, err=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        click.echo(f"failed after {time.monotonic() - start:.1f} s", err=True)
        raise
    click.echo(f"{time.monotonic() - start:.1f} s", err=True)


class Progress:
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
