"""Files of the cloud tier that may change while it serves: API keys, certificate, access log."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

from edgekit.errors import SettingsError
from edgekit.serving.api.keys import MIN_KEY_LENGTH, KeyOwner, parse_keys

MAKE_KEY = "Make one: (umask 077; python3 -c 'import secrets; print(secrets.token_urlsafe(24))' > {file})."
MAX_KEY_FILE_BYTES = 4 * 1024**2


def read_keys(path: Path) -> tuple[KeyOwner, ...]:
    """The owners in a key file that only its owner may read.

    Raises:
        SettingsError: the file is missing, readable by others, or has no usable key; the advice says how to make one.
    """
    advice = MAKE_KEY.format(file=path)
    try:
        found = path.stat()
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
        text = data.decode()
    except FileNotFoundError as error:
        raise SettingsError(f"there is no API key file {path}", advice=advice) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"API key file {path} cannot be read: {error}", advice=advice) from error
    # A group may read what another user, such as Kubernetes, has put there for this process.
    if found.st_mode & (0o077 if found.st_uid == os.getuid() else 0o007):
        raise SettingsError(f"API key file {path} can be read by others", advice=f"Run: chmod 600 {path}")
    if len(data) > MAX_KEY_FILE_BYTES:
        raise SettingsError(f"API key file {path} is longer than {MAX_KEY_FILE_BYTES} bytes")
    try:
        return parse_keys(text)
    except SettingsError as error:
        raise SettingsError(f"API key file {path}: {error}", advice=error.advice or advice) from error


def read_api_key(path: Path) -> str:
    """The only key in a file that only its owner may read. Raises SettingsError as `read_keys`."""
    owners = read_keys(path)
    key = path.read_text(encoding="ascii").strip()
    if len(owners) > 1 or any(c.isspace() for c in key):
        raise SettingsError(
            f"API key file {path} must contain one word of at least {MIN_KEY_LENGTH} characters",
            advice=MAKE_KEY.format(file=path),
        )
    return key


class Watched:
    """Files, and what to do when one of them changes.

    Args:
        paths: The files.
        reload: Reads them; raises SettingsError where they cannot be used.
    """

    def __init__(self, paths: Sequence[Path], reload: Callable[[], object]) -> None:
        self._paths, self._reload = paths, reload
        self._seen = self._state()

    def look(self) -> str:
        """Reload the files if they have changed since the last look. Returns a sentence on it; empty for no change."""
        state = self._state()
        if state == self._seen:
            return ""
        self._seen = state
        names = " and ".join(map(str, self._paths))
        try:
            self._reload()
        except SettingsError as error:
            return f"{error}; what was read before stays in use"
        return f"{names} was read again" if len(self._paths) == 1 else f"{names} were read again"

    def _state(self) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError:
                found.append((0,))
            else:
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size, stat.st_mode))
        return found


class LogFile:
    """A file to which lines are appended, or stdout. Lines that cannot be written are left out and counted.

    Args:
        path: The file; ``-`` for stdout.
        tell: Called with a sentence where lines begin to be left out, and where they are written again.

    Raises:
        SettingsError: it cannot be opened.
    """

    def __init__(self, path: str, tell: Callable[[str], None]) -> None:
        self._path, self._tell = path, tell
        self._file = self._open()
        self._left_out = 0

    def write(self, line: bytes) -> None:
        """Append a line, its line feed included. A full disk costs lines of the log, and no answer."""
        try:
            self._file.write(line)
        except OSError as error:
            self._left_out += 1
            if self._left_out == 1:
                self._tell(f"access log {self._path} cannot be written, lines are left out: {error.strerror or error}")
            return
        if self._left_out:
            self._tell(f"access log {self._path} is written again; {self._left_out} lines were left out")
            self._left_out = 0

    def reopen(self) -> None:
        """Open the file again, because it may have been renamed. Raises SettingsError; the old one stays in use."""
        opened = self._open()
        self._file.close()
        self._file = opened

    def _open(self) -> FileIO:
        try:
            if self._path == "-":
                return FileIO(sys.stdout.fileno(), "wb", closefd=False)
            return FileIO(self._path, "ab")  # without a buffer, which would keep what a full disk refused
        except OSError as error:
            raise SettingsError(f"access log {self._path} cannot be opened: {error.strerror or error}") from error
