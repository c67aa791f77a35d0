"""Key files of device classes: X25519 key pairs in ``classes/`` of the key folder.

They have the permissions, passphrases and file names of the signing keys.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from edgekit.bundle.manifest import NAME_PATTERN
from edgekit.errors import DataError, NotFoundError, SettingsError
from edgekit.sealing.cipher import key_id
from edgekit.trust.keys import PUBLIC_SUFFIX, key_path, load_private, public_path, write_private

FOLDER = "classes"
_CONTENT = "_content"  # cannot be the name of a class: those start with a letter or digit


class DeviceClass(msgspec.Struct, frozen=True):
    """A set of devices that can open the same sealed bundles.

    Attributes:
        name: Name of the class.
        public: Public key of the class, 32 bytes.
        private_here: True if the private key is in the key folder too.
    """

    name: str
    public: bytes
    private_here: bool = False

    @property
    def key_id(self) -> str:
        """Id of the class key, as in manifests and facts."""
        return key_id(self.public)


def add_class(keys: Path, name: str, passphrase: str | None = None) -> DeviceClass:
    """Make the key pair of a class, and the publisher's content secret if there is none yet.

    Raises:
        SettingsError: The name is not valid, the class exists, or a file cannot be written.
    """
    _check(name)
    path = class_path(keys, name)
    if public_path(path).exists():
        raise SettingsError(
            f"there is already a class {name}, and keys are never overwritten", advice="Choose another name."
        )
    write_private(path, X25519PrivateKey.generate(), passphrase)
    content_secret(keys, passphrase)
    return find_class(keys, name)


def list_classes(keys: Path) -> list[DeviceClass]:
    """The classes whose public keys are in the key folder, sorted by name. Raises as `find_class`."""
    names = [path.name.removesuffix(PUBLIC_SUFFIX) for path in (keys / FOLDER).glob(f"*{PUBLIC_SUFFIX}")]
    return [find_class(keys, name) for name in sorted(names) if NAME_PATTERN.fullmatch(name)]


def find_class(keys: Path, name: str) -> DeviceClass:
    """The class called `name`.

    Raises:
        NotFoundError: Its public key is not in the key folder.
        SettingsError: The file is not an X25519 public key, or the name is not valid.
    """
    _check(name)
    path = class_path(keys, name)
    file = public_path(path)
    if not file.exists():
        raise NotFoundError(
            f"there is no device class {name!r}: {file} is missing", advice=f"Run: edgekit registry class add {name}"
        )
    return DeviceClass(name, load_x25519_public(file), path.exists())


def load_x25519_public(file: Path) -> bytes:
    """The 32 bytes of a public key file.

    Raises:
        SettingsError: It cannot be read, or is not an X25519 public key.
    """
    try:
        return parse_x25519_public(file.read_bytes())
    except (OSError, DataError) as error:
        raise SettingsError(f"public key {file} cannot be read: {error}") from error


def parse_x25519_public(pem: bytes) -> bytes:
    """The 32 bytes of a public key in PEM. Raises DataError for anything but an X25519 public key."""
    try:
        public = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DataError(str(error)) from error
    if not isinstance(public, X25519PublicKey):
        raise DataError(f"it is a {type(public).__name__}, expected X25519")
    return public.public_bytes_raw()


def class_path(keys: Path, name: str) -> Path:
    """Path of the private key of a class."""
    return key_path(keys / FOLDER, name)


def load_class_key(path: Path, passphrase: str | None = None) -> X25519PrivateKey:
    """Read the private key of a class.

    Raises:
        NotFoundError: The file does not exist.
        SettingsError: Other users can read the file, it is not an X25519 key, or the passphrase is missing or wrong.
    """
    private = load_private(path, passphrase)
    if not isinstance(private, X25519PrivateKey):
        raise SettingsError(f"class key {path} is a {type(private).__name__}, expected X25519")
    return private


def _check(name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise SettingsError(f"class {name!r} is not of the form {NAME_PATTERN.pattern}", advice="Choose another name.")


def plain_pem(private: X25519PrivateKey) -> bytes:
    """PEM bytes of a private key without a passphrase, because nobody can type one when a device starts."""
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def content_secret(keys: Path, passphrase: str | None = None, *, make: bool = True) -> bytes:
    """The publisher's secret, 32 bytes, from which content keys are derived. Raises as `load_class_key`.

    Content keys are derived and not random, so that sealing the same bundle again gives the same bytes.

    Args:
        keys: The key folder.
        passphrase: Passphrase of the file; None for a file without one.
        make: Make the secret if there is none.
    """
    path = class_path(keys, _CONTENT)
    if make and not path.exists():
        write_private(path, X25519PrivateKey.generate(), passphrase)
    return load_class_key(path, passphrase).private_bytes_raw()
