"""Key files: private keys stay private, and errors say what is wrong with a file."""

from __future__ import annotations

import resource
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from securesystemslib.exceptions import UnverifiedSignatureError

from edgekit.errors import NotFoundError, SettingsError
from edgekit.trust.keys import generate_key, is_encrypted, load_public, load_signer, public_path


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_key_signs_what_its_public_file_verifies(tmp_path: Path, passphrase: str | None) -> None:
    """Generated, loaded and public key are one key, encrypted or not; a changed payload does not verify."""
    made = generate_key(tmp_path / "device.key", passphrase)
    signature = load_signer(tmp_path / "device.key", passphrase).sign(b"payload")
    public = load_public(tmp_path / "device.pub")
    assert public.keyid == made.public_key.keyid == signature.keyid
    public.verify_signature(signature, b"payload")
    with pytest.raises(UnverifiedSignatureError):
        public.verify_signature(signature, b"Payload")
    assert is_encrypted(tmp_path / "device.key") == (passphrase is not None)


def test_a_private_key_is_for_its_owner_only(tmp_path: Path) -> None:
    """Mode 0600 in a folder of mode 0700, whatever the umask; the passphrase leaves no plain key behind."""
    path = tmp_path / "keys" / "root"
    generate_key(path, "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert b"ENCRYPTED" in path.read_bytes()
    assert public_path(path) == tmp_path / "keys" / "root.pub"


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    """Making a key where one is fails and leaves the old one."""
    generate_key(tmp_path / "root")
    before = (tmp_path / "root").read_bytes(), (tmp_path / "root.pub").read_bytes()
    with pytest.raises(SettingsError, match="already a key"):
        generate_key(tmp_path / "root")
    assert ((tmp_path / "root").read_bytes(), (tmp_path / "root.pub").read_bytes()) == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The error shows the mode and the chmod command."""
    generate_key(tmp_path / "root")
    (tmp_path / "root").chmod(mode)
    with pytest.raises(SettingsError, match=f"{mode:04o}") as caught:
        load_signer(tmp_path / "root")
    assert "chmod 600" in caught.value.advice


@pytest.mark.parametrize(
    ("passphrase", "reason"), [("wrong", "passphrase is wrong"), (None, "no passphrase was given")]
)
def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path, passphrase: str | None, reason: str) -> None:
    """A wrong passphrase and a missing one give different errors."""
    generate_key(tmp_path / "root", "right")
    with pytest.raises(SettingsError, match=reason):
        load_signer(tmp_path / "root", passphrase)


def test_a_passphrase_for_a_plain_key_does_no_harm(tmp_path: Path) -> None:
    """One passphrase serves a folder in which some keys are not encrypted."""
    generate_key(tmp_path / "root")
    load_signer(tmp_path / "root", "unneeded")


def test_what_is_no_ed25519_key_is_refused(tmp_path: Path) -> None:
    """Garbage, another algorithm and a missing file give different errors."""
    path = tmp_path / "key"
    with pytest.raises(NotFoundError):
        load_signer(path)
    path.write_bytes(b"garbage")
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="not a PKCS8 PEM"):
        load_signer(path)
    with pytest.raises(SettingsError, match="not a PEM public key"):
        load_public(path)
    other = generate_private_key(SECP256R1())
    path.write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(SettingsError, match="expected Ed25519"):
        load_signer(path)


def test_a_full_disk_leaves_no_half_key(tmp_path: Path) -> None:
    """A partly written key is removed, so that the next attempt can make it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(SettingsError, match="cannot be written"):
            generate_key(tmp_path / "root.key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    generate_key(tmp_path / "root.key")
