"""A bundle's files as whoever runs it reads them: sealed ones are opened in memory, and touch no disk.

What this process may open is told once, when it starts (`hold`), as its user id is: everything in it that reads a
bundle reads it with that. Without a keyring nothing of the cryptography is imported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.bundle.compat import seal_mismatches
from edgekit.bundle.manifest import FileEntry, Manifest
from edgekit.errors import CompatibilityError, RuntimeLoadError, SettingsError

if TYPE_CHECKING:
    from edgekit.sealing.cipher import FileCipher
    from edgekit.sealing.keyring import Keyring

_held: Keyring | None = None


def hold(keyring: Keyring | None) -> None:
    """From now on this process opens sealed bundles with `keyring`; None opens none."""
    global _held
    _held = keyring


def held_paths() -> tuple[Path, ...]:
    """The key files of what this process opens sealed bundles with."""
    return _held.paths if _held else ()


def read_file(manifest: Manifest, folder: Path, entry: FileEntry) -> bytes:
    """One file of a bundle, as it was before it was sealed.

    Raises:
        OSError: it cannot be read.
        CompatibilityError, SealError: as `Keyring.cipher`; SealError too where the file is not what was sealed.
    """
    if manifest.sealed is None:
        return (folder / entry.path).read_bytes()
    with (folder / entry.path).open("rb") as file:
        return b"".join(_cipher(manifest, entry).open(file))


@contextlib.contextmanager
def file_path(manifest: Manifest, folder: Path, entry: FileEntry) -> Iterator[Path]:
    """A path under which a file of a bundle can be read as it was before it was sealed.

    Of a sealed one it leads to memory, and holds while the context lasts; what was mapped stays mapped after it.

    Raises:
        CompatibilityError, SealError: as `read_file`.
        RuntimeLoadError: a sealed file cannot be read, or memory does not do for it.
        SettingsError: this system has no files in memory (only Linux has).
    """
    if manifest.sealed is None:
        yield folder / entry.path
        return
    if not hasattr(os, "memfd_create"):
        raise SettingsError("sealed bundles are opened on Linux only: this system has no files in memory")
    with contextlib.ExitStack() as stack:
        try:
            memory = stack.enter_context(os.fdopen(os.memfd_create(entry.path), "wb"))
            with (folder / entry.path).open("rb") as file:
                for part in _cipher(manifest, entry).open(file):
                    memory.write(part)
            memory.flush()
        except OSError as error:
            raise RuntimeLoadError(f"{entry.path} cannot be opened in memory: {error}") from error
        yield Path(f"/proc/self/fd/{memory.fileno()}")


def _cipher(manifest: Manifest, entry: FileEntry) -> FileCipher:
    if _held is None:
        raise CompatibilityError(seal_mismatches(manifest, ()))
    return _held.cipher(manifest, entry)
