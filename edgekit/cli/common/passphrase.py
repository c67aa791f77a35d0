"""The passphrase of key files: from a file, from EDGEKIT_PASSPHRASE, or from a prompt."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekit.errors import SettingsError

VARIABLE = "EDGEKIT_PASSPHRASE"

F = TypeVar("F", bound=Callable[..., Any])


def passphrase_option(function: F) -> F:
    """Add ``--passphrase-file``."""
    return click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"File with the passphrase of the keys [default: ${VARIABLE}, else a prompt].",
    )(function)


def given_passphrase(file: Path | None) -> str | None:
    """The passphrase from `file`, else from the environment; None if there is neither.

    Raises:
        SettingsError: the file cannot be read or is empty.
    """
    if file is None:
        return os.environ.get(VARIABLE) or None
    try:
        text = file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"passphrase file {file} cannot be read: {error}") from error
    if not text:
        raise SettingsError(f"passphrase file {file} is empty")
    return text


def needed_passphrase(file: Path | None, keys: Iterable[Path]) -> str | None:
    """As `given_passphrase`; if there is none and one of `keys` is encrypted, prompts on a terminal."""
    from edgekit.trust.keys import is_encrypted

    given = given_passphrase(file)
    if given or not sys.stdin.isatty() or not any(key.exists() and is_encrypted(key) for key in keys):
        return given
    return str(click.prompt("Passphrase of the keys", hide_input=True, err=True))
