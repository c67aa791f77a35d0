"""Names of samples in the registry's store: ``samples/<device>/<day of arrival>/<id>-<bytes>``. Pure.

A name with 0 bytes is a mark without content: this sample was here, and was collected and removed. It keeps a device
that did not get the acknowledgement from sending the sample a second time.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import NamedTuple

ROOT = "samples"
_NAME = re.compile(ROOT + r"/([a-z0-9][a-z0-9-]{0,62})/(\d{4}-\d\d-\d\d)/([0-9a-z]{16,40})-(\d{1,9})")


class StoredName(NamedTuple):
    """A sample in the store.

    Attributes:
        device: Name of the device.
        day: Day of its arrival (UTC), as ``YYYY-MM-DD``.
        id: Id of the sample.
        size: Bytes; 0 for a removed sample.
    """

    device: str
    day: str
    id: str
    size: int

    @property
    def text(self) -> str:
        """The name in the store."""
        return f"{ROOT}/{self.device}/{self.day}/{self.id}-{self.size}"


def day_of(seconds: float) -> str:
    """The day (UTC) of wall clock seconds."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d")


def parse_name(text: str) -> StoredName | None:
    """The parts of a name; None for a name of another form."""
    match = _NAME.fullmatch(text)
    return None if match is None else StoredName(match[1], match[2], match[3], int(match[4]))


def folder(device: str = "") -> str:
    """Where the samples of a device are; without a name, of all devices."""
    return f"{ROOT}/{device}" if device else ROOT
