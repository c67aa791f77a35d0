"""Whether the link is metered (its traffic costs money), and how much a deployment may fetch over it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from device_agents.flag_file import is_set
from edgekit.errors import UnavailableError


class MeteredError(UnavailableError):
    """A deployment waits until the link is no longer metered."""

    waiting = "metered"


class MeteredLink(msgspec.Struct, frozen=True):
    """When the link is metered, and what a deployment may fetch over it then.

    Attributes:
        always: True when the link is always metered.
        file: The link is metered while this file exists; a network hook creates and removes it.
        deployment_bytes: Bytes that one deployment may fetch over a metered link.
    """

    always: bool = False
    file: Path | None = None
    deployment_bytes: int = 0

    def is_metered(self) -> bool:
        """True while the link is metered, or while that cannot be determined."""
        return is_set(self.always, self.file)

    def check(self, fetched: int) -> None:
        """Raise MeteredError when a deployment that has fetched `fetched` bytes must wait."""
        if fetched >= self.deployment_bytes and self.is_metered():
            source = "by this device's settings" if self.always else f"while {self.file} exists"
            allowed = f"{self.deployment_bytes} bytes of a deployment" if self.deployment_bytes else "nothing"
            raise MeteredError(f"waiting: the link is metered {source}, and {allowed} may be downloaded over it")
