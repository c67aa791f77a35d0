"""Envelopes: a message is accepted only if the expected key signed it."""

from __future__ import annotations

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner

from edgekit.errors import DataError, SignatureError
from edgekit.mqtt.messages import Command, Envelope, Result, decode, encode
from edgekit.trust.envelopes import open_envelope, seal

COMMAND = Command(device="pi-1", fleet="lab", number=3, expires=1e9, kind="self-test", args={"model": "digits"})


def test_a_sealed_message_is_opened_by_its_key() -> None:
    """The message is returned."""
    signer = CryptoSigner.generate_ed25519()
    payload = seal(COMMAND, signer)
    assert open_envelope(payload, Command, signer.public_key) == COMMAND


def test_another_key_is_refused_even_when_it_borrows_the_name() -> None:
    """Another key is refused, with its own key id and with a false one."""
    right, wrong = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    payload = seal(COMMAND, wrong)
    with pytest.raises(SignatureError, match="expected"):
        open_envelope(payload, Command, right.public_key)
    borrowed = msgspec.structs.replace(decode(payload, Envelope), key=right.public_key.keyid)
    with pytest.raises(SignatureError, match="wrong signature"):
        open_envelope(encode(borrowed), Command, right.public_key)


@pytest.mark.parametrize("field", ["body", "sig"])
def test_a_flipped_bit_is_refused(field: str) -> None:
    """A changed body and a changed signature are both refused."""
    signer = CryptoSigner.generate_ed25519()
    envelope = decode(seal(COMMAND, signer), Envelope)
    data = bytearray(getattr(envelope, field))
    data[len(data) // 2] ^= 1
    changed = encode(msgspec.structs.replace(envelope, **{field: bytes(data)}))
    with pytest.raises(SignatureError):
        open_envelope(changed, Command, signer.public_key)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01\x02\x03", encode(COMMAND), b"x" * 300_000])
def test_garbage_is_a_data_error(payload: bytes) -> None:
    """A payload that is not an envelope raises DataError before any signature check."""
    signer = CryptoSigner.generate_ed25519()
    with pytest.raises(DataError):
        open_envelope(payload, Command, signer.public_key)


@pytest.mark.parametrize("sig", [b"", b"short", b"x" * 65])
def test_a_signature_of_the_wrong_length_is_wrong(sig: bytes) -> None:
    """A malformed signature is a SignatureError like any other."""
    signer = CryptoSigner.generate_ed25519()
    envelope = msgspec.structs.replace(decode(seal(COMMAND, signer), Envelope), sig=sig)
    with pytest.raises(SignatureError):
        open_envelope(encode(envelope), Command, signer.public_key)


def test_a_message_of_another_kind_is_a_data_error() -> None:
    """A signed command is not accepted as a result."""
    signer = CryptoSigner.generate_ed25519()
    with pytest.raises(DataError, match="Result"):
        open_envelope(seal(COMMAND, signer), Result, signer.public_key)
