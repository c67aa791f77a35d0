"""The bundles that the cloud tier loads: verified by the registry's reader, each in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from edgekit.bundle.compat import seal_mismatches
from edgekit.bundle.manifest import Manifest
from edgekit.errors import RefusedError
from edgekit.registry.catalogue import CatalogueEntry
from edgekit.registry.reader import RegistryReader


class RegistryBundles:
    """`Bundles` of a registry.

    Args:
        reader: Reads and verifies the registry.
        folder: Bundles are written to new folders in it.
        class_key_ids: Ids of the class keys that open sealed bundles.
    """

    def __init__(self, reader: RegistryReader, folder: Path, class_key_ids: Collection[str]) -> None:
        self._reader, self._folder, self._class_key_ids = reader, folder, class_key_ids
        self._number = 0

    def rows(self) -> Sequence[CatalogueEntry]:
        """The current catalogue. Raises as `RegistryReader.refresh` and `list`."""
        self._reader.refresh()
        return self._reader.list()

    def fetch(self, row: CatalogueEntry) -> tuple[Manifest, Path]:
        """Download a bundle.

        Raises:
            RefusedError: it is sealed for device classes whose keys are not here.
            EdgekitError: as `RegistryReader.load` and `download`.
        """
        manifest = self._reader.load(row).manifest
        if seal_mismatches(manifest, self._class_key_ids):
            raise RefusedError(_sealed_for_others(manifest), advice="Give its private key with --class-key FILE.")
        folder = self._folder / f"{row.name}-{row.version}-{self._number}"
        try:
            self._reader.download(manifest, folder)
        except BaseException:  # also a cancelled download leaves no folder; raised again
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._number += 1  # not before: a failure that lasts has one message, which is told once
        return manifest, folder


def _sealed_for_others(manifest: Manifest) -> str:
    classes = ", ".join(key.device_class for key in manifest.sealed.keys) if manifest.sealed else ""
    return f"{manifest.name} {manifest.version} is sealed for {classes}, and no such class key was given"
