"""A bundle to a sealed one: the same files under the same names, encrypted."""

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
    """Write `source` into `folder`, with every file encrypted for the devices of `classes`.

    The same bundle, classes and secret give the same bytes; what differs in one byte gets another content key, so no
    nonce is used twice.

    Args:
        source: The bundle's folder, whose files the caller has held to `manifest`.
        folder: A new one is made there.
        secret: Of the publisher, 32 bytes, from which the content key is derived.

    Raises:
        ManifestError: it is sealed already, or there is no class, or too many.
        SealError: a file changed meanwhile.
        DiskError: `folder` cannot be written.
    """
    if manifest.sealed is not None:
        raise ManifestError(f"bundle {manifest.name} {manifest.version} is sealed already")
    content = manifest.digest.encode()
    content_key = derive(secret, b"content", content)
    keys = [
        wrap(content_key, one.public, _pair(derive(secret, b"once", content, one.public)), manifest, one.name)
        for one in sorted(classes, key=lambda one: one.name)
    ]
    try:
        folder.mkdir(parents=True)
        files = tuple(_seal(FileCipher(content_key, manifest, e.path), e, source, folder) for e in manifest.files)
        made = msgspec.structs.replace(manifest, files=files, encryption=Encryption(tuple(keys)))
        faults = manifest_faults(made)
        if faults:
            raise ManifestError("the bundle cannot be sealed: " + "; ".join(faults))
        (folder / MANIFEST_NAME).write_bytes(made.canonical_bytes())
    except OSError as error:
        raise DiskError(f"the sealed bundle cannot be written to {folder}: {error}") from error
    return made


def _seal(cipher: FileCipher, entry: FileEntry, source: Path, folder: Path) -> FileEntry:
    whole, blocks, size = hashlib.sha256(), [], 0
    with (source / entry.path).open("rb") as file, (folder / entry.path).open("xb") as out:
        plain = _Hashed(file)
        for frame in cipher.seal(plain, entry.size):  # a frame is a block
            out.write(frame)
            whole.update(frame)
            blocks.append(hashlib.sha256(frame).hexdigest())
            size += len(frame)
    if plain.digest != entry.sha256:
        # One content key for two contents would give both away, so nothing that was sealed so far may leave.
        raise SealError(f"{entry.path} changed while it was sealed: it is no longer what the manifest says")
    return FileEntry(path=entry.path, role=entry.role, size=size, sha256=whole.hexdigest(), blocks=tuple(blocks))


class _Hashed:
    """A file whose bytes are hashed as they are read, so that what was hashed is what was read."""

    def __init__(self, file: Readable) -> None:
        self._file, self._hash = file, hashlib.sha256()

    @property
    def digest(self) -> str:
        """sha256 of what was read, hex."""
        return self._hash.hexdigest()

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes, or fewer at the end."""
        data = self._file.read(size)
        self._hash.update(data)
        return data


def _pair(private: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(private)
