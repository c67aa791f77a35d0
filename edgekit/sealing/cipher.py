"""Encryption of files and content keys. Pure: no I/O; callers pass bytes and open files.

All parts are standard and come from the `cryptography` package: AES-256-GCM (NIST SP 800-38D), HKDF-SHA256 (RFC 5869)
and X25519 (RFC 7748). Files are split into frames as in STREAM (Hoang, Reyhanitabar, Rogaway, Vizar: Online
Authenticated Encryption and its Nonce-Reuse Misuse-Resistance, 2015). Content keys are wrapped as in HPKE's base mode
(RFC 9180): a key pair for one use, Diffie-Hellman with the class key, and a derived key whose context contains both
public keys.

A sealed frame has the length of a block, so that one damaged block is one damaged frame. A sealed file has no header:
the signed manifest contains everything that a header would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgekit.bundle.manifest import BLOCK_BYTES, SEAL_FORMAT, Manifest, WrappedKey
from edgekit.errors import SealError

KEY_BYTES, TAG_BYTES = 32, 16
FRAME_BYTES = BLOCK_BYTES - TAG_BYTES
ONE_USE_NONCE = bytes(12)  # for a key that encrypts a single message


class Readable(Protocol):
    """A source of bytes, for example a file opened for reading."""

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        ...


def derive(secret: bytes, *context: bytes) -> bytes:
    """Derive a key of 32 bytes from `secret`; every `context` gives another key."""
    info = _join(SEAL_FORMAT.encode(), *context)
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def key_id(public: bytes) -> str:
    """Id of the class key with the public key `public` (32 bytes), as in manifests and facts: its sha256, hex."""
    return hashlib.sha256(public).hexdigest()


class FileCipher:
    """Cipher of one file of one bundle, with a key for this file only.

    Args:
        content_key: Content key of the bundle, 32 bytes. It must never encrypt two contents of the same path, because
            nonces are counters and would repeat.
        manifest: Manifest of the bundle. Frames are bound to its name, target and version.
        path: Path of the file. Frames are bound to it.
    """

    def __init__(self, content_key: bytes, manifest: Manifest, path: str) -> None:
        self._path = path
        self._bound = _join(SEAL_FORMAT.encode(), *_identity(manifest), path.encode())
        self._aead = AESGCM(derive(content_key, b"file", *_identity(manifest), path.encode()))

    def seal(self, source: Readable, size: int) -> Iterator[bytes]:
        """Encrypt the `size` bytes of `source`, and yield frame by frame.

        Raises:
            SealError: `source` has fewer bytes.
        """
        frames = max(1, -(-size // FRAME_BYTES))
        for index in range(frames):
            data = source.read(min(FRAME_BYTES, size - index * FRAME_BYTES))
            if len(data) != min(FRAME_BYTES, size - index * FRAME_BYTES):
                raise SealError(
                    f"{self._path} changed while it was sealed: it ends before byte {size}",
                    advice="Make sure that nothing writes to the bundle, and seal it again.",
                )
            nonce = _nonce(index, last=index == frames - 1)
            yield self._aead.encrypt(nonce, data, self._bound + nonce)

    def open(self, source: Readable) -> Iterator[bytes]:
        """Decrypt `source`, and yield the content of each frame after its tag has been verified.

        Raises:
            SealError: A frame was changed, or belongs to another position, file, bundle or key, or the file has too
                few or too many bytes.
        """
        index, data = 0, source.read(BLOCK_BYTES)
        while True:
            following = source.read(BLOCK_BYTES) if len(data) == BLOCK_BYTES else b""
            nonce = _nonce(index, last=not following)
            try:
                yield self._aead.decrypt(nonce, data, self._bound + nonce)
            except InvalidTag as error:
                raise SealError(
                    f"{self._path} cannot be opened: frame {index} is not what was sealed there; it was changed, or it "
                    "belongs to another position, file, bundle or key",
                    advice="Fetch the bundle again; if that does not help, seal and publish it again.",
                ) from error
            if not following:
                return
            index, data = index + 1, following


def wrap(content_key: bytes, public: bytes, once: X25519PrivateKey, manifest: Manifest, name: str) -> WrappedKey:
    """Encrypt the content key of a bundle for one device class.

    Args:
        content_key: Content key of the bundle, 32 bytes.
        public: Public key of the class, 32 bytes.
        once: A key pair for this wrapping only.
        manifest: Manifest of the bundle. The wrapped key is bound to its name, target and version.
        name: Name of the class. The wrapped key is bound to it.

    Raises:
        SealError: `public` is a point of small order, whose shared secret everybody knows.
    """
    own = once.public_key().public_bytes_raw()
    shared = _exchange(once, public, name)
    wrapped = _wrapping_cipher(shared, own, public, manifest).encrypt(ONE_USE_NONCE, content_key, name.encode())
    return WrappedKey(device_class=name, key_id=key_id(public), public=own.hex(), wrapped=wrapped.hex())


def unwrap(private: X25519PrivateKey, wrapped: WrappedKey, manifest: Manifest) -> bytes:
    """Decrypt the content key of a bundle with the private class key.

    Raises:
        SealError: It was wrapped for another class key or another bundle, or it was changed.
    """
    own, other = private.public_key().public_bytes_raw(), bytes.fromhex(wrapped.public)
    shared = _exchange(private, other, wrapped.device_class)
    try:
        encrypted, name = bytes.fromhex(wrapped.wrapped), wrapped.device_class.encode()
        content_key = _wrapping_cipher(shared, other, own, manifest).decrypt(ONE_USE_NONCE, encrypted, name)
    except InvalidTag as error:
        raise SealError(
            f"the content key of {manifest.name} {manifest.version} for device class {wrapped.device_class} cannot be "
            "opened: it was changed, or it was wrapped for another class key or bundle",
            advice="Seal and publish the bundle again.",
        ) from error
    return content_key


def _exchange(private: X25519PrivateKey, public: bytes, name: str) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # a point of small order
        raise SealError(f"the key for device class {name} is not a usable X25519 public key") from error


def _wrapping_cipher(shared: bytes, once: bytes, public: bytes, manifest: Manifest) -> AESGCM:
    return AESGCM(derive(shared, b"wrap", once, public, *_identity(manifest)))


def _identity(manifest: Manifest) -> tuple[bytes, ...]:
    return manifest.name.encode(), manifest.target.encode(), manifest.version.encode()


def _nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([last])


def _join(*parts: bytes) -> bytes:
    """Join the parts, each after its length, so that different lists of parts give different bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
