"""Seal a bundle: write the same files under the same names, encrypted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edgekit.bundle.manifest import MANIFEST_NAME, Encryption, FileEntry, Manifest, manifest_faults
from edgekit.errors import DiskError, ManifestError, SealError
from edgekit.sealing.cipher import FileCipher, Readable, derive, wrap
from edgekit.sealing.class_keys import DeviceClass


def seal_bundle(
    source: Path, manifest: Manifest, folder: Path, *, classes: Sequence[DeviceClass], secret: bytes
) -> Manifest:
    """Encrypt every file of the bundle in `source` for the devices of `classes`, and write them into `folder`.

    The same bundle, classes and secret give the same bytes. A bundle that differs in one byte has another content key,
    so that no nonce is used twice with a key.

    Args:
        source: Folder of the bundle; the caller has verified its files against `manifest`.
        manifest: Manifest of the bundle; it must not be sealed.
        folder: Folder for the sealed bundle; it must not exist.
        classes: Device classes that may open the bundle.
        secret: The publisher's content secret, 32 bytes; the content key is derived from it.

    Returns:
        The manifest of the sealed bundle.

    Raises:
        ManifestError: The bundle is already sealed, or there is no class, or there are too many.
        SealError: A file changed while it was sealed.
        DiskError: `folder` cannot be written.
    """
    if manifest.sealed is not None:
        raise ManifestError(
            f"bundle {manifest.name} {manifest.version} is already sealed, expected one with plain files",
            advice="Seal the bundle that `edgekit convert` wrote.",
        )
    content = manifest.digest.encode()
    content_key = derive(secret, b"content", content)
    keys = [
        wrap(content_key, one.public, _pair(derive(secret, b"once", content, one.public)), manifest, one.name)
        for one in sorted(classes, key=lambda one: one.name)
    ]
    try:
        folder.mkdir(parents=True)
        files = tuple(_seal(FileCipher(content_key, manifest, e.path), e, source, folder) for e in manifest.files)
        sealed = msgspec.structs.replace(manifest, files=files, encryption=Encryption(tuple(keys)))
        faults = manifest_faults(sealed)
        if faults:
            raise ManifestError("the bundle cannot be sealed: " + "; ".join(faults))
        (folder / MANIFEST_NAME).write_bytes(sealed.canonical_bytes())
    except OSError as error:
        raise DiskError(f"the sealed bundle cannot be written to {folder}: {error}") from error
    return sealed


def _seal(cipher: FileCipher, entry: FileEntry, source: Path, folder: Path) -> FileEntry:
    file_hash, blocks, size = hashlib.sha256(), [], 0
    with (source / entry.path).open("rb") as file, (folder / entry.path).open("xb") as out:
        plain = _HashingReader(file)
        for frame in cipher.seal(plain, entry.size):  # each sealed frame is one block
            out.write(frame)
            file_hash.update(frame)
            blocks.append(hashlib.sha256(frame).hexdigest())
            size += len(frame)
    if plain.digest != entry.sha256:
        # The content key belongs to the verified content. A second content under it would repeat nonces and could
        # reveal both, so the caller must not publish what was written so far.
        raise SealError(
            f"{entry.path} changed while it was sealed: its sha256 is no longer the one in the manifest",
            advice="Make sure that nothing writes to the bundle, and seal it again.",
        )
    return FileEntry(path=entry.path, role=entry.role, size=size, sha256=file_hash.hexdigest(), blocks=tuple(blocks))


class _HashingReader:
    """A file that hashes its bytes while they are read, so that the digest is of exactly the bytes that are sealed."""

    def __init__(self, file: Readable) -> None:
        self._file, self._hash = file, hashlib.sha256()

    @property
    def digest(self) -> str:
        """sha256 of the bytes read so far, hex."""
        return self._hash.hexdigest()

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        data = self._file.read(size)
        self._hash.update(data)
        return data


def _pair(private: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(private)
