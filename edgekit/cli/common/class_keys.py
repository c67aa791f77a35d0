"""Private keys of device classes, as commands load them: with the passphrase of the key folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekit.cli.common.console import needs_extra
from edgekit.cli.common.passphrase import needed_passphrase


def class_passphrase(keys: Path, file: Path | None) -> str | None:
    """The passphrase of class keys, which is that of the key folder; see `needed_passphrase`."""
    from edgekit.sealing.class_keys import FOLDER
    from edgekit.trust.keys import private_keys

    return needed_passphrase(file, [*private_keys(keys), *private_keys(keys / FOLDER)])


def plain_class_keys(keys: Path, names: Sequence[str], file: Path | None) -> dict[str, bytes]:
    """Private class keys as a device stores them: unencrypted PEM, by file name on the device.

    Args:
        keys: The key folder.
        names: Names of classes.
        file: The passphrase file, if one was named.

    Raises:
        NotFoundError, SettingsError: as `load_class_key`.
    """
    if not names:
        return {}
    with needs_extra("controller"):
        from edgekit.sealing.class_keys import class_path, find_class, load_class_key, plain_pem
    chosen = [find_class(keys, name).name for name in dict.fromkeys(names)]
    passphrase = class_passphrase(keys, file)
    return {f"class-{name}.key": plain_pem(load_class_key(class_path(keys, name), passphrase)) for name in chosen}
