"""Signed envelopes: a wire message with the Ed25519 signature of its sender."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, Signature

from edgekit.errors import SignatureError
from edgekit.mqtt.messages import Envelope, decode, encode

T = TypeVar("T", bound=msgspec.Struct)


def seal(message: msgspec.Struct, signer: CryptoSigner) -> bytes:
    """Encode `message` into a signed Envelope."""
    body = encode(message)
    signature = signer.sign(body)
    return encode(Envelope(body=body, key=signature.keyid, sig=bytes.fromhex(signature.signature)))


def open_envelope(payload: bytes, kind: type[T], key: Key) -> T:
    """Verify an encoded Envelope with `key` and decode its message.

    Raises:
        DataError: the payload is not an Envelope, or its body is not a message of `kind`.
        SignatureError: the envelope names another key, or the signature is wrong.
    """
    envelope = decode(payload, Envelope)
    if envelope.key != key.keyid:
        raise SignatureError(f"{kind.__name__} is signed by key {envelope.key[:64]!r}, expected {key.keyid!r}")
    try:
        key.verify_signature(Signature(envelope.key, envelope.sig.hex()), envelope.body)
    except UnverifiedSignatureError as error:
        raise SignatureError(f"{kind.__name__} has a wrong signature by key {envelope.key!r}") from error
    return decode(envelope.body, kind)
