"""A/B slots of one model: two folders, and a pointer that names the active and the known-good slot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import MANIFEST_NAME, NAME_PATTERN, FileEntry, Manifest, parse_manifest
from edgekit.errors import DataError, DigestMismatchError, DiskError, UnavailableError
from edgekit.protocols import Disk

SLOTS = ("a", "b")
CHUNK_BYTES = 1024 * 1024
_ROOT = "models"


class Pointer(msgspec.Struct, frozen=True):
    """Slots by role: ``a``, ``b`` or empty for none. The roles differ while a bundle is active but not committed."""

    active: str = ""
    known_good: str = ""


def slot_folders(disk: Disk) -> list[str]:
    """Disk names of the slots of every model; some may be empty."""
    return [f"{_ROOT}/{model}/{slot}" for model in disk.list(_ROOT) for slot in SLOTS]


class Slots:
    """The slots of one model below ``models/<name>/``.

    Args:
        disk: The device's folder.
        model: Name of the model.

    Attributes:
        root: Disk name of the folder with both slots and the pointer.

    Raises:
        ValueError: the name cannot be a folder name.
    """

    def __init__(self, disk: Disk, model: str) -> None:
        if not NAME_PATTERN.fullmatch(model):
            raise ValueError(f"{model!r} is not a model name")
        self._disk = disk
        self.root = f"{_ROOT}/{model}"

    def pointer(self) -> Pointer:
        """The pointer on the disk.

        Raises:
            DataError: the pointer cannot be read.
        """
        name = f"{self.root}/active"
        if not self._disk.exists(name):
            return Pointer()
        try:
            return msgspec.json.decode(self._disk.read(name), type=Pointer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"the pointer {self._disk.path(name)} cannot be read: {error}") from error

    def point(self, active: str, known_good: str) -> None:
        """Write the pointer, atomically and durably; a damaged one is replaced."""
        name = f"{self.root}/active"
        if not active and not known_good:
            self._disk.remove(name)
            return
        try:
            present = self.pointer()
        except DataError:
            present = Pointer()
        if present != Pointer(active, known_good):
            self._disk.write(name, msgspec.json.encode(Pointer(active, known_good)))

    def folder(self, slot: str) -> str:
        """Disk name of a slot."""
        if slot not in SLOTS:
            raise ValueError(f"{slot!r} is not a slot, expected a or b")
        return f"{self.root}/{slot}"

    def path(self, slot: str) -> Path:
        """Path of a slot, for a runtime that opens the files itself."""
        return self._disk.path(self.folder(slot))

    def manifest(self, slot: str, digest: str) -> Manifest:
        """The manifest of the bundle in a slot; the sizes of its files are checked.

        Raises:
            DiskError: there is no whole bundle in the slot.
            DigestMismatchError: the slot has another bundle than the one with `digest`.
        """
        name = f"{self.folder(slot)}/{MANIFEST_NAME}"
        try:
            data = self._disk.read(name)
        except FileNotFoundError as error:
            raise DiskError(f"slot {self._disk.path(self.folder(slot))} has no bundle") from error
        actual = hashlib.sha256(data).hexdigest()
        if actual != digest:
            raise DigestMismatchError(str(self._disk.path(name)), expected=digest, found=actual)
        manifest = parse_manifest(data)
        for entry in manifest.files:
            file = f"{self.folder(slot)}/{entry.path}"
            if not self._disk.exists(file) or self._disk.size(file) != entry.size:
                raise DiskError(f"{self._disk.path(file)} is missing or not {entry.size} bytes long")
        return manifest

    def stage(self, slot: str, manifest_bytes: bytes, source: str) -> None:
        """Move the verified files of `source` (a folder) into a slot. The manifest, written last, marks a whole bundle.

        Raises:
            DiskError: the disk failed.
            UnavailableError: a power cut lost a file that had been moved; it must be fetched again.
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
    """Hash a whole file.

    Raises:
        DigestMismatchError: the file does not have the digest of its entry.
        DiskError: the file is missing, or the disk failed.
    """
    try:
        size = disk.size(name)
    except FileNotFoundError as error:
        raise DiskError(f"{disk.path(name)} is missing") from error
    hasher = hashlib.sha256()
    for chunk in _chunks(disk, name, size):
        hasher.update(chunk)
    if hasher.hexdigest() != entry.sha256:
        raise DigestMismatchError(f"file {entry.path}", expected=entry.sha256, found=hasher.hexdigest())


def _chunks(disk: Disk, name: str, size: int) -> Iterator[bytes]:
    for offset in range(0, size, CHUNK_BYTES):
        yield disk.read_at(name, offset, CHUNK_BYTES)
