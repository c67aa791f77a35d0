"""The conditions that an assignment sets for a deployment: the user's agreement, and the maintenance window."""

from __future__ import annotations

import time

from device_agents.deployment import Deployment
from device_agents.storage.consents import CONSENT, DECLINED, Consents
from device_agents.threads import in_thread
from edgekit.errors import UnavailableError
from edgekit.hours import parse_hours
from edgekit.protocols import Clock


class ConsentError(UnavailableError):
    """A deployment waits until the user agrees."""

    waiting = CONSENT


class DeclinedError(UnavailableError):
    """The user has declined a deployment; it waits for another answer."""

    waiting = DECLINED


class WindowError(UnavailableError):
    """A deployment waits for its maintenance window."""

    waiting = "window"


class Conditions:
    """Checks the conditions of deployments.

    Args:
        consents: The user's answers.
        clock: Wall time; its hours are those of the device's time zone.
    """

    def __init__(self, consents: Consents, clock: Clock) -> None:
        self._consents, self._clock = consents, clock

    async def check(self, deployment: Deployment) -> None:
        """Check them now.

        Raises:
            WindowError: it is outside of the window.
            ConsentError, DeclinedError: the user has not agreed.
        """
        self.check_window(deployment)
        if not deployment.consent:
            return
        agreed = await in_thread(self._consents.get, deployment.name, deployment.digest)
        if agreed is None:
            raise ConsentError(
                f"{deployment.name} {deployment.version} waits for an agreement",
                advice=f"Run: edgekit-agent agree {deployment.name}",
            )
        if not agreed:
            raise DeclinedError(f"{deployment.name} {deployment.version} was declined by the user")

    def forget(self, model: str) -> None:
        """Forget the user's answer for a model. Raises DiskError."""
        self._consents.forget(model)

    def check_window(self, deployment: Deployment) -> None:
        """Raise WindowError outside of the maintenance window."""
        try:
            window = parse_hours(deployment.window, "maintenance windows")
        except ValueError as error:  # the director signed it, so it is not the device's to interpret
            raise WindowError(f"its window cannot be read: {error}") from error
        local = time.localtime(self._clock.wall())
        if window is not None and local.tm_hour * 60 + local.tm_min not in window:
            raise WindowError(f"{deployment.name} {deployment.version} waits for {window}, in the device's time zone")
