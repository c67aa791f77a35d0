"""Which published versions of a model the cloud tier serves, and which of them answers a request. Rules only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from edgekit.bundle.order import version_order
from edgekit.registry.catalogue import CatalogueEntry
from edgekit.serving.models.cloud_options import CloudModelOptions

_HASH_RANGE = 2**64


class ServedVersions(NamedTuple):
    """The published versions of one model that are to be served.

    Attributes:
        main: The newest first. The first one answers requests that name no version.
        canary: Answers a share of them; None for none.
    """

    main: tuple[CatalogueEntry, ...]
    canary: CatalogueEntry | None = None

    @property
    def all(self) -> tuple[CatalogueEntry, ...]:
        """The main version first, then the canary, then older versions."""
        return (*self.main[:1], *((self.canary,) if self.canary else ()), *self.main[1:])


def choose_versions(rows: Iterable[CatalogueEntry], target: str, options: CloudModelOptions) -> ServedVersions:
    """Choose the versions of one model to serve. Retired bundles and those of other targets are never chosen.

    A canary is newer than the main version. So an older version that was left in the canary channel gets no requests.

    Args:
        rows: The model's entries of the catalogue.
        target: Name of the target profile.
        options: Channels, and the number of versions.
    """
    fitting = sorted(
        (row for row in rows if row.target == target and not row.retired),
        key=lambda row: (version_order(row.version), row.release),
        reverse=True,
    )
    main = tuple(row for row in fitting if options.channel in ("", row.channel))[: options.versions]
    canary = None
    if options.canary_channel and options.canary_share > 0 and main:
        newest = next((row for row in fitting if row.channel == options.canary_channel), None)
        if newest is not None and version_order(newest.version) > version_order(main[0].version):
            canary = newest
    return ServedVersions(main, canary)


def is_for_canary(share: float, number: int, stream: int | str | None = None) -> bool:
    """True if the canary answers a request that names no version.

    The requests of one stream all go to one version. Others are spread evenly: of any n in a row, n times the share,
    rounded up or down, go to the canary.

    Args:
        share: The canary's share, 0 to 1.
        number: Number of the request; rises by one with each.
        stream: Id of the request's stream; None for a request of its own.
    """
    if stream is None:
        return int((number + 1) * share) > int(number * share)
    digest = hashlib.sha256(repr(stream).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * _HASH_RANGE
