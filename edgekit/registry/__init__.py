"""The registry: publish bundles, find them, fetch them verified, re-hash everything."""

from edgekit.registry.catalogue import MadeDelta, Release, Row, blob_name, metadata_name
from edgekit.registry.publishing import check_bundle, publish
from edgekit.registry.reader import RegistryReader

__all__ = [
    "MadeDelta",
    "RegistryReader",
    "Release",
    "Row",
    "blob_name",
    "check_bundle",
    "metadata_name",
    "publish",
]
