"""Sealed messages: only the receiver's key and the right context open them, and nothing can be changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edgekit.errors import SealError, SettingsError
from edgekit.sealing.cipher import key_id
from edgekit.sealing.class_keys import load_x25519_public
from edgekit.sealing.message_keys import add_message_key, load_message_keys, message_key_files
from edgekit.sealing.messages import OVERHEAD_BYTES, open_message, receiver, seal_message
from edgekit.trust.keys import generate_key, public_path

OWNER = X25519PrivateKey.generate()
PUBLIC = OWNER.public_key().public_bytes_raw()


def seal(data: bytes, context: bytes = b"c") -> bytes:
    return seal_message(data, PUBLIC, X25519PrivateKey.generate(), context)


@pytest.mark.parametrize("data", [b"", b"x", bytes(100_000)])
def test_the_receiver_opens_what_was_sealed(data: bytes) -> None:
    """The message names its key, and has a fixed overhead."""
    sealed = seal(data)
    assert open_message(sealed, OWNER, b"c") == data
    assert receiver(sealed) == key_id(PUBLIC)
    assert len(sealed) == len(data) + OVERHEAD_BYTES
    assert seal(data) != sealed


def test_nobody_else_opens_it_and_no_bit_can_change() -> None:
    """Another key, another context, a cut message, and each byte changed."""
    sealed = seal(b"secret")
    for changed, key, context in (
        (sealed, X25519PrivateKey.generate(), b"c"),
        (sealed, OWNER, b"d"),
        (sealed[:-1], OWNER, b"c"),
        (b"", OWNER, b"c"),
    ):
        with pytest.raises(SealError):
            open_message(changed, key, context)
    for at in range(len(sealed)):
        if 4 <= at < 36:
            continue  # the id of the key is only a label
        with pytest.raises(SealError):
            open_message(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], OWNER, b"c")


def test_a_point_that_reveals_everything_is_refused() -> None:
    """A public key of small order."""
    with pytest.raises(SealError, match="usable"):
        seal_message(b"x", bytes(32), X25519PrivateKey.generate(), b"c")


def test_keys_are_added_beside_each_other(tmp_path: Path) -> None:
    """An old key goes on opening old messages; a key of another kind is refused."""
    first, second = add_message_key(tmp_path), add_message_key(tmp_path, "word")
    assert message_key_files(tmp_path) == sorted([first, second])
    keys = load_message_keys(tmp_path, "word")
    assert set(keys) == {key_id(load_x25519_public(public_path(one))) for one in (first, second)}
    generate_key(tmp_path / "device.key")
    with pytest.raises(SettingsError, match="expected X25519"):
        load_x25519_public(tmp_path / "device.pub")
