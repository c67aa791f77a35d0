"""Read the files of plain and sealed bundles. Sealed files are decrypted in memory and never written to a disk.

A process sets its keyring once, when it starts (`use_keyring`). The keyring belongs to the whole process, as its user
id does, and every read of a bundle uses it. Without a keyring, the cryptography package is not imported.
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

_keyring: Keyring | None = None


def use_keyring(keyring: Keyring | None) -> None:
    """Set the keyring with which this process opens sealed bundles; with None it can open none."""
    global _keyring
    _keyring = keyring


def keyring_paths() -> tuple[Path, ...]:
    """Key files of this process's keyring; empty without a keyring."""
    return _keyring.paths if _keyring else ()


def read_file(manifest: Manifest, folder: Path, entry: FileEntry) -> bytes:
    """The content of one file of a bundle, decrypted if the bundle is sealed.

    Raises:
        OSError: The file cannot be read.
        CompatibilityError: The bundle is sealed, and this process has no key for it.
        SealError: The file or its wrapped key was changed, or belongs to another bundle.
    """
    if manifest.sealed is None:
        return (folder / entry.path).read_bytes()
    with (folder / entry.path).open("rb") as file:
        return b"".join(_cipher(manifest, entry).open(file))


@contextlib.contextmanager
def file_path(manifest: Manifest, folder: Path, entry: FileEntry) -> Iterator[Path]:
    """A path from which a library can read the content of one file of a bundle.

    For a sealed bundle the path is a file in memory, which exists until the context ends. A mapping of it stays valid
    after that.

    Raises:
        CompatibilityError, SealError: As `read_file`.
        RuntimeLoadError: A sealed file cannot be read, or there is not enough memory for it.
        SettingsError: This system has no files in memory; only Linux has them.
    """
    if manifest.sealed is None:
        yield folder / entry.path
        return
    if not hasattr(os, "memfd_create"):
        raise SettingsError("sealed bundles can be opened on Linux only: this system has no files in memory")
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
    if _keyring is None:
        raise CompatibilityError(seal_mismatches(manifest, ()))
    return _keyring.cipher(manifest, entry)
