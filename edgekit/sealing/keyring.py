"""The private class keys of a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edgekit.bundle.compat import seal_mismatches
from edgekit.bundle.manifest import FileEntry, Manifest
from edgekit.errors import CompatibilityError
from edgekit.sealing.cipher import FileCipher, key_id, unwrap
from edgekit.sealing.class_keys import load_class_key


class Keyring:
    """The private class keys with which a process opens sealed bundles.

    Args:
        paths: Key files of device classes, without a passphrase. `paths` remembers them for child processes.

    Raises:
        NotFoundError, SettingsError: As `load_class_key`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(path.absolute() for path in paths)
        keys = [load_class_key(path) for path in self.paths]
        self._keys: dict[str, X25519PrivateKey] = {key_id(one.public_key().public_bytes_raw()): one for one in keys}

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the keys, sorted, as in `Facts.seal_keys`."""
        return tuple(sorted(self._keys))

    def cipher(self, manifest: Manifest, entry: FileEntry) -> FileCipher:
        """The cipher that opens one file of a sealed bundle.

        Raises:
            CompatibilityError: The bundle is sealed for other classes, which the message names, or not sealed.
            SealError: The wrapped content key was changed, or was wrapped for another class key or bundle.
        """
        missing = seal_mismatches(manifest, self._keys)
        if missing or manifest.sealed is None:
            raise CompatibilityError(missing or ["it is not sealed"])
        wrapped = next(key for key in manifest.sealed.keys if key.key_id in self._keys)
        return FileCipher(unwrap(self._keys[wrapped.key_id], wrapped, manifest), manifest, entry.path)
