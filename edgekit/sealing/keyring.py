"""The private class keys of one process."""

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
    """What sealed bundles are opened with.

    Args:
        paths: Key files of device classes, not encrypted; kept by name for processes that are started from here.

    Raises:
        NotFoundError, SettingsError: as `load_class_key`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(path.absolute() for path in paths)
        keys = [load_class_key(path) for path in self.paths]
        self._keys: dict[str, X25519PrivateKey] = {key_id(one.public_key().public_bytes_raw()): one for one in keys}

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the keys, sorted; what `Facts.seal_keys` holds."""
        return tuple(sorted(self._keys))

    def cipher(self, manifest: Manifest, entry: FileEntry) -> FileCipher:
        """What opens one file of a sealed bundle.

        Raises:
            CompatibilityError: it is sealed for other classes; names them.
            SealError: the wrapped key is not what was wrapped for this class and bundle.
        """
        missing = seal_mismatches(manifest, self._keys)
        if missing or manifest.sealed is None:
            raise CompatibilityError(missing or ["it is not sealed"])
        wrapped = next(key for key in manifest.sealed.keys if key.key_id in self._keys)
        return FileCipher(unwrap(self._keys[wrapped.key_id], wrapped, manifest), manifest, entry.path)
