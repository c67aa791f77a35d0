"""Limits and time-outs of downloads."""

from __future__ import annotations

import msgspec

from device_agents.download.metered import MeteredLink
from edgekit.hours import Hours


class DownloadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of downloads; fields with the name of an agent setting mean the same.

    Attributes:
        max_bundle_bytes: Size limit of a bundle; a larger one is refused.
        download_bytes_per_second: Rate at which blocks are requested; 0 for no limit.
        download_budget: Bytes that one deployment may fetch over all its attempts, as a multiple of its bundle's size.
        download_urls: Whether blocks are also fetched from URLs that the controller names.
        quiet_hours: Local times in which nothing is downloaded; None for none.
        metered: Limits of a metered link.
    """

    max_bundle_bytes: int = 2 * 1024**3
    download_bytes_per_second: int = 0
    download_budget: float = 3.0
    download_urls: bool = True
    quiet_hours: Hours | None = None
    metered: MeteredLink = MeteredLink()


class TransferTimings(msgspec.Struct, frozen=True, kw_only=True):
    """Time-outs of a transfer, in seconds.

    Attributes:
        http_timeout_seconds: For an HTTP connection, and for each part of an answer.
        http_range_seconds: For one HTTP range as a whole.
        broadcast_first_seconds: Until the first block of a broadcast; the controller gathers devices before.
        broadcast_silent_seconds: From one block of a broadcast to the next.
    """

    http_timeout_seconds: float = 10.0
    http_range_seconds: float = 60.0
    broadcast_first_seconds: float = 6.0
    broadcast_silent_seconds: float = 3.0
