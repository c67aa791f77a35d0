"""The registry: publish bundles, list and resolve them, download them verified, and verify the whole registry.

Signing is in `edgekit.trust`, and stores are in `edgekit.storage`; both are passed in by the caller.
"""

from edgekit.bundle_folder import check_bundle
from edgekit.registry.catalogue import CatalogueEntry, MadeDelta, Release, blob_name, metadata_name
from edgekit.registry.publishing import publish
from edgekit.registry.reader import RegistryReader

__all__ = [
    "CatalogueEntry",
    "MadeDelta",
    "RegistryReader",
    "Release",
    "blob_name",
    "check_bundle",
    "metadata_name",
    "publish",
]
