"""Signed envelopes: a wire message with the Ed25519 signature of whoever says it."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, Signature

from edgekit.errors import DataError, SignatureError
from edgekit.mqtt.messages import Envelope, decode, encode

T = TypeVar("T", bound=msgspec.Struct)


def seal(message: msgspec.Struct, signer: CryptoSigner) -> bytes:
    """The encoded Envelope of `message`, signed."""
    body = encode(message)
    signature = signer.sign(body)
    return encode(Envelope(body=body, key=signature.keyid, sig=bytes.fromhex(signature.signature)))


def open_envelope(payload: bytes, kind: type[T], key: Key) -> T:
    """The message of `kind` in an encoded Envelope, once its signature is seen to be by `key`.

    Raises:
        DataError: the payload is no Envelope, or its body no message of `kind`.
        SignatureError: it names another key, or the signature is wrong.
    """
    envelope = decode(payload, Envelope)
    if envelope.key != key.keyid:
        raise SignatureError(f"{kind.__name__} is signed by key {envelope.key[:64]!r}, expected {key.keyid!r}")
    try:
        key.verify_signature(Signature(envelope.key, envelope.sig.hex()), envelope.body)
    except UnverifiedSignatureError as error:
        raise SignatureError(f"{kind.__name__} has a wrong signature by key {envelope.key!r}") from error
    return decode(envelope.body, kind)


def signer_id(payload: bytes) -> str:
    """The key id that an encoded Envelope names, unverified: for choosing the key to verify it with.

    Raises:
        DataError: the payload is no Envelope.
    """
    key = decode(payload, Envelope).key
    if not key:
        raise DataError("envelope names no key")
    return key
