"""Ed25519 key files: the private key as PKCS8 PEM with mode 0600, its public key as PEM beside it."""

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
    """Where the private key of `role` lies: ``<folder>/<role>.key``."""
    return folder / f"{role}{KEY_SUFFIX}"


def private_keys(folder: Path) -> list[Path]:
    """The private key files in `folder`, sorted; empty where there is no such folder."""
    return sorted(folder.glob(f"*{KEY_SUFFIX}"))


def signers_of(folder: Path, keyids: Collection[str], passphrase: str | None = None) -> list[CryptoSigner]:
    """The private keys in `folder` that have one of these key ids, whatever their files are called.

    Raises:
        SettingsError: one of them cannot be loaded, or is not the key that the ``.pub`` file beside it says.
    """
    found = []
    for keyid, path in key_files(folder, passphrase).items():
        if keyid in keyids:
            signer = load_signer(path, passphrase)
            if signer.public_key.keyid != keyid:
                public = public_path(path)
                raise SettingsError(f"key {path} is not the key that {public} says", advice=f"Remove {public}.")
            found.append(signer)
    return found


def key_files(folder: Path, passphrase: str | None = None) -> dict[str, Path]:
    """The private key files in `folder` by key id.

    Raises:
        SettingsError: a key without a ``.pub`` file cannot be loaded; only it can tell its id then.
    """
    found = {}
    for path in private_keys(folder):
        public = public_path(path)
        key = load_public(public) if public.exists() else load_signer(path, passphrase).public_key
        found[key.keyid] = path
    return found


def free_path(folder: Path, role: str) -> Path:
    """Where a further key of `role` can be made: ``timestamp.key``, then ``timestamp+2.key`` and so on.

    No role has a ``+`` in its name, so no role's key is mistaken for another's.
    """
    paths = itertools.chain([key_path(folder, role)], (key_path(folder, f"{role}+{i}") for i in itertools.count(2)))
    return next(path for path in paths if not path.exists())


def public_path(path: Path) -> Path:
    """Where the public key of a private key file lies: ``device.pub`` for ``device.key``."""
    return path.with_name(path.name.removesuffix(KEY_SUFFIX) + PUBLIC_SUFFIX)


def generate_key(path: Path, passphrase: str | None = None) -> CryptoSigner:
    """Make a key; an existing file is never overwritten.

    Args:
        path: Of the private key; the public one is written beside it with the suffix ``.pub``.
        passphrase: Encrypts the private key; None or empty leaves it plain.

    Raises:
        SettingsError: there is already a key at `path`, or it cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    write_private(path, private, passphrase)
    return CryptoSigner(private)


def write_private(path: Path, private: Ed25519PrivateKey | X25519PrivateKey, passphrase: str | None = None) -> None:
    """Write a new key's two files; arguments and errors are those of `generate_key`."""
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


def load_signer(path: Path, passphrase: str | None = None) -> CryptoSigner:
    """Load a private key file.

    Raises:
        NotFoundError: there is no such file.
        SettingsError: others may read the file, it is no Ed25519 key, or the passphrase is missing or wrong.
    """
    private = load_private(path, passphrase)
    if not isinstance(private, Ed25519PrivateKey):
        raise SettingsError(f"key {path} is a {type(private).__name__}, expected Ed25519")
    return CryptoSigner(private)


def load_private(path: Path, passphrase: str | None = None) -> PrivateKeyTypes:
    """Load a private key file of any kind.

    Raises:
        NotFoundError: there is no such file.
        SettingsError: others may read the file, it is no key, or the passphrase is missing or wrong.
    """
    data = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise SettingsError(
            f"key {path} has mode {mode:04o}, expected 0600: others on this machine may read it",
            advice=f"Run: chmod 600 {path}",
        )
    try:
        return serialization.load_pem_private_key(data, passphrase.encode() if passphrase and _locked(data) else None)
    except TypeError as error:
        raise SettingsError(
            f"key {path} is encrypted and no passphrase was given",
            advice="Set EDGEKIT_PASSPHRASE or name a passphrase file.",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        reason = "the passphrase is wrong" if _locked(data) else "it is not a PKCS8 PEM private key"
        raise SettingsError(f"key {path} cannot be read: {reason}") from error


def load_public(path: Path) -> SSlibKey:
    """Load a public key file (``.pub``).

    Raises:
        NotFoundError: there is no such file.
        SettingsError: it is no Ed25519 public key.
    """
    return parse_public(_read(path), str(path))


def parse_public(data: bytes, label: str = "public key") -> SSlibKey:
    """The key in PEM bytes, with its TUF key id.

    Raises:
        SettingsError: the bytes are no Ed25519 public key.
    """
    try:
        public = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{label} cannot be read: it is not a PEM public key") from error
    if not isinstance(public, Ed25519PublicKey):
        raise SettingsError(f"{label} is a {type(public).__name__}, expected Ed25519")
    return SSlibKey.from_crypto(public)


def is_encrypted(path: Path) -> bool:
    """True when the private key file needs a passphrase.

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
        path.unlink()  # half a key could be neither used nor replaced
        raise
