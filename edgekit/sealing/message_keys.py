"""Key files for sealed messages: X25519 key pairs in ``samples/`` of the key folder.

Devices get the public key, as a file. The private key opens what they collect; it stays where `edgekit collect` runs.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edgekit.sealing.cipher import key_id
from edgekit.sealing.class_keys import load_class_key
from edgekit.trust.keys import free_path, private_keys, write_private

FOLDER = ROLE = "samples"


def add_message_key(keys: Path, passphrase: str | None = None) -> Path:
    """Make a key pair, beside those that are there; returns the path of the private key. Raises SettingsError."""
    path = free_path(keys / FOLDER, ROLE)
    write_private(path, X25519PrivateKey.generate(), passphrase)
    return path


def message_key_files(keys: Path) -> list[Path]:
    """The private key files, sorted."""
    return private_keys(keys / FOLDER)


def load_message_keys(keys: Path, passphrase: str | None = None) -> dict[str, X25519PrivateKey]:
    """The private keys by their ids. Raises as `load_class_key`."""
    found = [load_class_key(path, passphrase) for path in message_key_files(keys)]
    return {key_id(one.public_key().public_bytes_raw()): one for one in found}
