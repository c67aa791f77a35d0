"""How files and content keys are encrypted; bytes in, bytes out.

Only standard parts, each from the `cryptography` package: AES-256-GCM (NIST SP 800-38D), HKDF-SHA256 (RFC 5869), X25519
(RFC 7748). Files are cut into frames as STREAM does it (Hoang, Reyhanitabar, Rogaway, Vizar: Online Authenticated
Encryption and its Nonce-Reuse Misuse-Resistance, 2015). Keys are wrapped in the manner of HPKE's base mode (RFC 9180):
a key pair for one use, Diffie-Hellman with the class's key, a derived key that has both public keys in its context.

A sealed frame is as long as a block, so that a damaged block is one damaged frame. There is no header: what one would
say stands in the signed manifest.
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
_ONCE = bytes(12)  # the nonce of a key that encrypts one message only


class Readable(Protocol):
    """What bytes are read from: a file, for example."""

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        ...


def sealed_size(size: int) -> int:
    """Bytes of a file of `size` bytes when it is sealed; an empty one has a frame too."""
    return size + TAG_BYTES * max(1, -(-size // FRAME_BYTES))


def derive(secret: bytes, *context: bytes) -> bytes:
    """A key of 32 bytes from `secret`, another one for every other `context`."""
    info = _join(SEAL_FORMAT.encode(), *context)
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def key_id(public: bytes) -> str:
    """What manifests and facts call the class key with this public key (32 bytes)."""
    return hashlib.sha256(public).hexdigest()


class FileCipher:
    """Seals and opens one file of one bundle, under a key that belongs to nothing else.

    Args:
        content_key: Of the bundle, 32 bytes. It must never serve for two contents of one path: nonces are counted.
        manifest: Whose name, target and version the frames are bound to.
        path: The file's, to which they are bound too.
    """

    def __init__(self, content_key: bytes, manifest: Manifest, path: str) -> None:
        self._path = path
        self._bound = _join(SEAL_FORMAT.encode(), *_identity(manifest), path.encode())
        self._aead = AESGCM(derive(content_key, b"file", *_identity(manifest), path.encode()))

    def seal(self, source: Readable, size: int) -> Iterator[bytes]:
        """Frames of the `size` bytes of `source`.

        Raises:
            SealError: it has fewer bytes.
        """
        frames = max(1, -(-size // FRAME_BYTES))
        for index in range(frames):
            data = source.read(min(FRAME_BYTES, size - index * FRAME_BYTES))
            if len(data) != min(FRAME_BYTES, size - index * FRAME_BYTES):
                raise SealError(f"{self._path} changed while it was sealed: it ends before byte {size}")
            nonce = _nonce(index, last=index == frames - 1)
            yield self._aead.encrypt(nonce, data, self._bound + nonce)

    def open(self, source: Readable) -> Iterator[bytes]:
        """What was sealed, a frame at a time; nothing of a frame is given before it is found genuine.

        Raises:
            SealError: a frame is changed, of another place, file, bundle or key; or the file ends elsewhere.
        """
        index, data = 0, source.read(BLOCK_BYTES)
        while True:
            after = source.read(BLOCK_BYTES) if len(data) == BLOCK_BYTES else b""
            nonce = _nonce(index, last=not after)
            try:
                yield self._aead.decrypt(nonce, data, self._bound + nonce)
            except InvalidTag as error:
                raise SealError(f"{self._path} cannot be opened: frame {index} is not what was sealed there") from error
            if not after:
                return
            index, data = index + 1, after


def wrap(content_key: bytes, public: bytes, once: X25519PrivateKey, manifest: Manifest, name: str) -> WrappedKey:
    """The content key of a bundle, for the device class `name` whose public key is `public` (32 bytes).

    Args:
        once: A key pair for this one use.
        manifest: Of the bundle; the wrapped key is bound to its name, target and version.

    Raises:
        SealError: `public` is a point that gives no secret.
    """
    own = once.public_key().public_bytes_raw()
    shared = _exchange(once, public, name)
    wrapped = _wrapping(shared, own, public, manifest).encrypt(_ONCE, content_key, name.encode())
    return WrappedKey(device_class=name, key_id=key_id(public), public=own.hex(), wrapped=wrapped.hex())


def unwrap(private: X25519PrivateKey, wrapped: WrappedKey, manifest: Manifest) -> bytes:
    """The content key of a bundle.

    Raises:
        SealError: it was wrapped for another key or another bundle, or is changed.
    """
    own, other = private.public_key().public_bytes_raw(), bytes.fromhex(wrapped.public)
    shared = _exchange(private, other, wrapped.device_class)
    try:
        sealed, name = bytes.fromhex(wrapped.wrapped), wrapped.device_class.encode()
        found = _wrapping(shared, other, own, manifest).decrypt(_ONCE, sealed, name)
    except InvalidTag as error:
        raise SealError(
            f"the key of {manifest.name} {manifest.version} for device class {wrapped.device_class} is not what was "
            "wrapped for this class key and bundle"
        ) from error
    return found


def _exchange(private: X25519PrivateKey, public: bytes, name: str) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # a point of small order
        raise SealError(f"the key for device class {name} is no usable X25519 public key") from error


def _wrapping(shared: bytes, once: bytes, public: bytes, manifest: Manifest) -> AESGCM:
    return AESGCM(derive(shared, b"wrap", once, public, *_identity(manifest)))


def _identity(manifest: Manifest) -> tuple[bytes, ...]:
    return manifest.name.encode(), manifest.target.encode(), manifest.version.encode()


def _nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([last])


def _join(*parts: bytes) -> bytes:
    """Parts with their lengths, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
