"""Whether the link costs by the byte at the moment, and what a deployment may then fetch over it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgekit.errors import UnavailableError


class MeteredError(UnavailableError):
    """A deployment waits for a link that costs nothing."""


class MeteredLink(NamedTuple):
    """What the owner says of the link.

    Attributes:
        always: It is metered.
        file: It is metered while this file exists; whoever knows the link makes and removes it.
        deployment_bytes: Most that one deployment may fetch over it.
    """

    always: bool = False
    file: Path | None = None
    deployment_bytes: int = 0

    def is_metered(self) -> bool:
        """True while it costs, or while that cannot be told."""
        if self.always or self.file is None:
            return self.always
        try:
            self.file.lstat()
        except FileNotFoundError:
            return False
        except OSError:
            return True  # a folder that may not be searched: waiting costs nothing
        return True

    def check(self, fetched: int) -> None:
        """Raises MeteredError where a deployment that has fetched so many bytes must wait."""
        if fetched >= self.deployment_bytes and self.is_metered():
            said = "by this device's settings" if self.always else f"while {self.file} exists"
            allowed = f"{self.deployment_bytes} bytes of a deployment" if self.deployment_bytes else "nothing"
            raise MeteredError(f"waiting: the link is metered {said}, and {allowed} may be downloaded over it")
