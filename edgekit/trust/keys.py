"""Ed25519 key files: the private key in PKCS8 PEM with mode 0600, and its public key in PEM beside it."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Collection
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgekit.errors import NotFoundError, SettingsError

KEY_SUFFIX = ".key"
PUBLIC_SUFFIX = ".pub"


def key_path(folder: Path, role: str) -> Path:
    """Path of the private key of `role`: ``<folder>/<role>.key``."""
    return folder / f"{role}{KEY_SUFFIX}"


def private_keys(folder: Path) -> list[Path]:
    """The private key files in `folder`, sorted; empty if there is no such folder."""
    return sorted(folder.glob(f"*{KEY_SUFFIX}"))


def signers_of(folder: Path, keyids: Collection[str], passphrase: str | None = None) -> list[CryptoSigner]:
    """The private keys in `folder` that have one of these key ids; file names do not matter.

    Raises:
        SettingsError: one of them cannot be loaded, or does not match the ``.pub`` file beside it.
    """
    signers = []
    for keyid, path in key_files(folder, passphrase).items():
        if keyid in keyids:
            signer = load_signer(path, passphrase)
            if signer.public_key.keyid != keyid:
                public = public_path(path)
                raise SettingsError(f"key {path} does not match {public}", advice=f"Remove {public}.")
            signers.append(signer)
    return signers


def key_files(folder: Path, passphrase: str | None = None) -> dict[str, Path]:
    """The private key files in `folder` by key id.

    Raises:
        SettingsError: a key without a ``.pub`` file cannot be loaded, so its id is not known.
    """
    files = {}
    for path in private_keys(folder):
        public = public_path(path)
        key = load_public(public) if public.exists() else load_signer(path, passphrase).public_key
        files[key.keyid] = path
    return files


def free_path(folder: Path, role: str) -> Path:
    """An unused path for a key of `role`: ``timestamp.key``, then ``timestamp+2.key`` and so on.

    No role has a ``+`` in its name, so the paths of two roles never clash.
    """
    paths = itertools.chain([key_path(folder, role)], (key_path(folder, f"{role}+{i}") for i in itertools.count(2)))
    return next(path for path in paths if not path.exists())


def public_path(path: Path) -> Path:
    """Path of the public key beside a private key file: ``device.pub`` for ``device.key``."""
    return path.with_name(path.name.removesuffix(KEY_SUFFIX) + PUBLIC_SUFFIX)


def generate_key(path: Path, passphrase: str | None = None) -> CryptoSigner:
    """Make a key pair; never overwrites a file.

    Args:
        path: Path of the private key; the public key is written beside it with the suffix ``.pub``.
        passphrase: Encrypts the private key; None or empty stores it unencrypted.

    Raises:
        SettingsError: there is already a key at `path`, or it cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    write_private(path, private, passphrase)
    return CryptoSigner(private)


def write_private(path: Path, private: Ed25519PrivateKey | X25519PrivateKey, passphrase: str | None = None) -> None:
    """Write the two files of a new key; arguments and errors as `generate_key`."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    data = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(path, data, 0o600)
        public_path(path).write_bytes(public)
    except FileExistsError as error:
        raise SettingsError(
            f"there is already a key at {path}", advice="Keys are never overwritten; name another file or folder."
        ) from error
    except OSError as error:
        raise SettingsError(f"key {path} cannot be written: {error}") from error


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read.

    Raises:
        SettingsError: there is such a file already, or it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(path, data, 0o600)
    except FileExistsError as error:
        raise SettingsError(f"there is already a file {path}", advice="Keys are never overwritten.") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error}") from error


def load_signer(path: Path, passphrase: str | None = None) -> CryptoSigner:
    """Load a private key file.

    Raises:
        NotFoundError: there is no such file.
        SettingsError: others may read the file, it is not an Ed25519 key, or the passphrase is missing or wrong.
    """
    private = load_private(path, passphrase)
    if not isinstance(private, Ed25519PrivateKey):
        raise SettingsError(f"key {path} is a {type(private).__name__}, expected Ed25519")
    return CryptoSigner(private)


def load_private(path: Path, passphrase: str | None = None) -> PrivateKeyTypes:
    """Load a private key file of any kind.

    Raises:
        NotFoundError: there is no such file.
        SettingsError: others may read the file, it is not a key, or the passphrase is missing or wrong.
    """
    data = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise SettingsError(
            f"key {path} has mode {mode:04o}, expected 0600: other users of this machine may read it",
            advice=f"Run: chmod 600 {path}",
        )
    try:
        return serialization.load_pem_private_key(data, passphrase.encode() if passphrase and _locked(data) else None)
    except TypeError as error:
        raise SettingsError(
            f"key {path} is encrypted and no passphrase was given",
            advice="Set EDGEKIT_PASSPHRASE or use --passphrase-file.",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        reason = "the passphrase is wrong" if _locked(data) else "it is not a PKCS8 PEM private key"
        raise SettingsError(f"key {path} cannot be read: {reason}") from error


def load_public(path: Path) -> SSlibKey:
    """Load a public key file (``.pub``).

    Raises:
        NotFoundError: there is no such file.
        SettingsError: it is not an Ed25519 public key.
    """
    return parse_public(_read(path), str(path))


def parse_public(data: bytes, label: str = "public key") -> SSlibKey:
    """Parse a PEM public key; the result has its TUF key id.

    Raises:
        SettingsError: the bytes are not an Ed25519 public key.
    """
    try:
        public = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{label} cannot be read: it is not a PEM public key") from error
    if not isinstance(public, Ed25519PublicKey):
        raise SettingsError(f"{label} is a {type(public).__name__}, expected Ed25519")
    return SSlibKey.from_crypto(public)


def public_pem(key: SSlibKey) -> str:
    """PEM of an Ed25519 public key.

    Raises:
        SettingsError: the key's bytes are no Ed25519 public key.
    """
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    except ValueError as error:
        raise SettingsError(f"public key cannot be read: {error}") from error
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def is_encrypted(path: Path) -> bool:
    """True if the private key file needs a passphrase.

    Raises:
        NotFoundError: there is no such file.
    """
    return _locked(_read(path))


def _locked(data: bytes) -> bool:
    return b"ENCRYPTED" in data.partition(b"\n")[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no key {path}") from error
    except OSError as error:
        raise SettingsError(f"key {path} cannot be read: {error}") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()  # a partial key file would be useless and would block the next attempt
        raise
