"""Seals bytes for the owner of an X25519 key, so that whoever sealed them cannot open them again. Pure.

As in HPKE's base mode (RFC 9180): a key pair for one use, Diffie-Hellman with the receiver's key, HKDF-SHA256 over both
public keys, and AES-256-GCM. A sealed message is a mark of 4 bytes, the id of the receiver's key (32 bytes), the public
key of the one use (32), and the ciphertext with its tag. The context, which both sides know, is authenticated with it.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgekit.errors import SealError
from edgekit.sealing.cipher import KEY_BYTES, ONE_USE_NONCE, TAG_BYTES, derive, key_id

MARK = b"EKM1"
OVERHEAD_BYTES = len(MARK) + 2 * KEY_BYTES + TAG_BYTES


def seal_message(data: bytes, public: bytes, once: X25519PrivateKey, context: bytes) -> bytes:
    """Seal `data`.

    Args:
        data: Any bytes.
        public: The receiver's public key, 32 bytes.
        once: A key pair for this message only; it must be forgotten afterwards.
        context: What the message belongs to; it is not in the message.

    Raises:
        SealError: `public` is a point of small order, whose shared secret everybody knows.
    """
    own = once.public_key().public_bytes_raw()
    key = _key(once, public, own, public)
    return MARK + bytes.fromhex(key_id(public)) + own + AESGCM(key).encrypt(ONE_USE_NONCE, data, context)


def receiver(sealed: bytes) -> str:
    """Id of the key that opens a sealed message, hex.

    Raises:
        SealError: it is no sealed message.
    """
    if not sealed.startswith(MARK) or len(sealed) < OVERHEAD_BYTES:
        raise SealError("this is no sealed message, or one of a newer release")
    return sealed[len(MARK) : len(MARK) + KEY_BYTES].hex()


def open_message(sealed: bytes, private: X25519PrivateKey, context: bytes) -> bytes:
    """Open a sealed message.

    Raises:
        SealError: it is no sealed message, was sealed for another key or context, or was changed.
    """
    receiver(sealed)
    once = sealed[len(MARK) + KEY_BYTES : len(MARK) + 2 * KEY_BYTES]
    own = private.public_key().public_bytes_raw()
    try:
        return AESGCM(_key(private, once, once, own)).decrypt(
            ONE_USE_NONCE, sealed[len(MARK) + 2 * KEY_BYTES :], context
        )
    except InvalidTag as error:
        raise SealError(
            "a sealed message cannot be opened: it was changed, or it was sealed for another key or purpose"
        ) from error


def _key(private: X25519PrivateKey, other: bytes, once: bytes, public: bytes) -> bytes:
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:  # a point of small order
        raise SealError("the key of a sealed message is not a usable X25519 public key") from error
    return derive(shared, b"message", once, public)
