"""A/B slots of one model: two folders, and a pointer that says which one is active and which is known to be good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import MANIFEST_NAME, NAME, FileEntry, Manifest, parse_manifest
from edgekit.errors import DataError, DigestMismatchError, DiskError, UnavailableError
from edgekit.protocols import Disk

SLOTS = ("a", "b")
CHUNK_BYTES = 1024 * 1024
_ROOT = "models"


class Pointer(msgspec.Struct, frozen=True):
    """Slots by role, ``a`` or ``b``; empty for none. They differ while a bundle is active but not committed."""

    active: str = ""
    known_good: str = ""


def slot_folders(disk: Disk) -> list[str]:
    """Disk names of the slots of every model; some may be empty."""
    return [f"{_ROOT}/{model}/{slot}" for model in disk.list(_ROOT) for slot in SLOTS]


class Slots:
    """The slots of one model below ``models/<name>/``.

    Args:
        disk: Everything is written through it.
        model: The model's name; a ValueError when it could be no folder.
    """

    def __init__(self, disk: Disk, model: str) -> None:
        if not NAME.fullmatch(model):
            raise ValueError(f"{model!r} is no model name")
        self._disk = disk
        self._root = f"{_ROOT}/{model}"

    def pointer(self) -> Pointer:
        """What the disk says.

        Raises:
            DataError: the pointer cannot be read.
        """
        name = f"{self._root}/active"
        if not self._disk.exists(name):
            return Pointer()
        try:
            return msgspec.json.decode(self._disk.read(name), type=Pointer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"the pointer {self._disk.path(name)} cannot be read: {error}") from error

    def point(self, active: str, known_good: str) -> None:
        """Write the pointer, atomically and durably; a damaged one is replaced."""
        name = f"{self._root}/active"
        if not active and not known_good:
            self._disk.remove(name)
            return
        try:
            there = self.pointer()
        except DataError:
            there = Pointer()
        if there != Pointer(active, known_good):
            self._disk.write(name, msgspec.json.encode(Pointer(active, known_good)))

    def folder(self, slot: str) -> str:
        """Disk name of a slot."""
        if slot not in SLOTS:
            raise ValueError(f"{slot!r} is no slot, expected a or b")
        return f"{self._root}/{slot}"

    def path(self, slot: str) -> Path:
        """The folder for a runtime that opens the files itself."""
        return self._disk.path(self.folder(slot))

    def manifest(self, slot: str, digest: str) -> Manifest:
        """The manifest of what a slot holds.

        Raises:
            DiskError: the slot does not hold a whole bundle.
            DigestMismatchError: it holds another bundle than the one with `digest`.
        """
        name = f"{self.folder(slot)}/{MANIFEST_NAME}"
        try:
            data = self._disk.read(name)
        except FileNotFoundError as error:
            raise DiskError(f"slot {self._disk.path(self.folder(slot))} holds no bundle") from error
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise DigestMismatchError(str(self._disk.path(name)), expected=digest, found=found)
        manifest = parse_manifest(data)
        for entry in manifest.files:
            file = f"{self.folder(slot)}/{entry.path}"
            if not self._disk.exists(file) or self._disk.size(file) != entry.size:
                raise DiskError(f"{self._disk.path(file)} is missing or not {entry.size} bytes long")
        return manifest

    def stage(self, slot: str, manifest_bytes: bytes, source: str) -> None:
        """Move the verified files of folder `source` into a slot; its manifest comes last, as the mark of a whole.

        Raises:
            DiskError: the disk failed.
            UnavailableError: a power cut lost a file that was moved already; it must be fetched again.
        """
        manifest, folder = parse_manifest(manifest_bytes), self.folder(slot)
        self._disk.make_folder(folder)
        self._disk.remove(f"{folder}/{MANIFEST_NAME}")
        wanted = {entry.path for entry in manifest.files}
        for name in self._disk.list(folder):
            if name not in wanted:
                self._disk.remove(f"{folder}/{name}")
        for entry in manifest.files:
            if self._disk.exists(f"{source}/{entry.path}"):
                self._disk.rename(f"{source}/{entry.path}", f"{folder}/{entry.path}")
            else:
                self._check_moved(folder, entry)
        self._disk.write(f"{folder}/{MANIFEST_NAME}", manifest_bytes)
        self._disk.sync(folder)

    def _check_moved(self, folder: str, entry: FileEntry) -> None:
        name = f"{folder}/{entry.path}"
        try:
            verify_file(self._disk, name, entry)
        except (DiskError, DigestMismatchError) as error:
            self._disk.remove(name)
            raise UnavailableError(f"{entry.path} was lost when staging was interrupted: {error}") from error

    def clear(self, slot: str) -> None:
        """Empty a slot that the pointer does not name.

        Raises:
            ValueError: the pointer names it.
        """
        pointer = self.pointer()
        if slot in (pointer.active, pointer.known_good):
            raise ValueError(f"slot {slot} is in use")
        self._disk.remove(self.folder(slot))


def verify_file(disk: Disk, name: str, entry: FileEntry) -> None:
    """Hash a whole file, piece by piece.

    Raises:
        DigestMismatchError: it does not have the digest that the manifest states.
        DiskError: it is not there, or the disk failed.
    """
    try:
        size = disk.size(name)
    except FileNotFoundError as error:
        raise DiskError(f"{disk.path(name)} is not there") from error
    hasher = hashlib.sha256()
    for piece in _pieces(disk, name, size):
        hasher.update(piece)
    if hasher.hexdigest() != entry.sha256:
        raise DigestMismatchError(f"file {entry.path}", expected=entry.sha256, found=hasher.hexdigest())


def _pieces(disk: Disk, name: str, size: int) -> Iterator[bytes]:
    for offset in range(0, size, CHUNK_BYTES):
        yield disk.read_at(name, offset, CHUNK_BYTES)
