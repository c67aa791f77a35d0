"""Class key files: X25519 pairs in ``classes/`` of the key folder, with the habits of the signing keys beside them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from edgekit.bundle.manifest import NAME
from edgekit.errors import NotFoundError, SettingsError
from edgekit.sealing.cipher import key_id
from edgekit.trust.keys import PUBLIC_SUFFIX, key_path, load_private, public_path, write_private

FOLDER = "classes"
_CONTENT = "_content"  # no class is called so: names begin with a letter or a digit


class DeviceClass(msgspec.Struct, frozen=True):
    """Devices that may open the same sealed bundles.

    Attributes:
        name: Of the class.
        public: Its public key, 32 bytes.
        private_here: Whether the private key is in the key folder too.
    """

    name: str
    public: bytes
    private_here: bool = False

    @property
    def key_id(self) -> str:
        """What manifests and devices call its key."""
        return key_id(self.public)


def add_class(keys: Path, name: str, passphrase: str | None = None) -> DeviceClass:
    """Make the key pair of a class, and the publisher's content secret where there is none yet.

    Raises:
        SettingsError: the name is not usable, the class is there already, or a file cannot be written.
    """
    _check(name)
    path = class_path(keys, name)
    if public_path(path).exists():
        raise SettingsError(
            f"there is already a class {name}", advice="Keys are never overwritten; name another class."
        )
    write_private(path, X25519PrivateKey.generate(), passphrase)
    content_secret(keys, passphrase)
    return find_class(keys, name)


def list_classes(keys: Path) -> list[DeviceClass]:
    """The classes whose public key is in the key folder, by name. Raises as `find_class`."""
    names = [path.name.removesuffix(PUBLIC_SUFFIX) for path in (keys / FOLDER).glob(f"*{PUBLIC_SUFFIX}")]
    return [find_class(keys, name) for name in sorted(names) if NAME.fullmatch(name)]


def find_class(keys: Path, name: str) -> DeviceClass:
    """A class by its name.

    Raises:
        NotFoundError: its public key is not in the key folder.
        SettingsError: that is no X25519 public key, or the name is none.
    """
    _check(name)
    path = class_path(keys, name)
    file = public_path(path)
    try:
        public = serialization.load_pem_public_key(file.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no device class {name!r}: {file} is missing", advice=f"Run: edgekit registry class add {name}"
        ) from error
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"class key {file} cannot be read: {error}") from error
    if not isinstance(public, X25519PublicKey):
        raise SettingsError(f"class key {file} is a {type(public).__name__}, expected X25519")
    return DeviceClass(name, public.public_bytes_raw(), path.exists())


def class_path(keys: Path, name: str) -> Path:
    """Where the private key of a class lies."""
    return key_path(keys / FOLDER, name)


def load_class_key(path: Path, passphrase: str | None = None) -> X25519PrivateKey:
    """The private key of a class.

    Raises:
        NotFoundError: there is no such file.
        SettingsError: others may read it, it is no X25519 key, or the passphrase is missing or wrong.
    """
    private = load_private(path, passphrase)
    if not isinstance(private, X25519PrivateKey):
        raise SettingsError(f"class key {path} is a {type(private).__name__}, expected X25519")
    return private


def _check(name: str) -> None:
    if not NAME.fullmatch(name):
        raise SettingsError(f"class {name!r} is not of the form {NAME.pattern}")


def plain_pem(private: X25519PrivateKey) -> bytes:
    """A private key's file without a passphrase, which a device opens at its start with nobody there."""
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def content_secret(keys: Path, passphrase: str | None = None, *, make: bool = True) -> bytes:
    """What content keys are derived from, 32 bytes; made where there is none, unless `make` is false.

    Raises as `load_class_key`.

    Derived and not drawn, so that the same bundle sealed again is the same to the last byte.
    """
    path = class_path(keys, _CONTENT)
    if make and not path.exists():
        write_private(path, X25519PrivateKey.generate(), passphrase)
    return load_class_key(path, passphrase).private_bytes_raw()
