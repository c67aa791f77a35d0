"""The gate that every request for blocks passes: the rate, the quiet hours and the metered link of the owner."""

from __future__ import annotations

import asyncio
import time

from device_agents.download.metered import MeteredLink
from device_agents.download.throttle import Bucket, QuietHoursError
from edgekit.hours import Hours
from edgekit.protocols import Clock


class Gate:
    """Lets requests through at the rate and in the hours that the device's owner allows.

    Args:
        clock: Monotonic time for the rate, wall time (in the device's time zone) for the hours.
        bytes_per_second: Rate; 0 for no limit.
        quiet: Hours in which nothing is requested; None for none.
        metered: Limits of a metered link; None for a link that is never metered.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        bytes_per_second: int = 0,
        quiet: Hours | None = None,
        metered: MeteredLink | None = None,
    ) -> None:
        self._clock, self._quiet, self._metered = clock, quiet, metered or MeteredLink()
        self._bucket = Bucket.full(bytes_per_second, clock.monotonic())

    @property
    def open(self) -> bool:
        """True without a rate limit and without a metered link; only then may a device receive broadcasts."""
        return not self._bucket.rate and not self._metered.is_metered()

    def check_cost(self, fetched: int) -> None:
        """Raise MeteredError when the link is metered and a deployment has fetched its share (`fetched` bytes)."""
        self._metered.check(fetched)

    def check_open(self) -> None:
        """Raise QuietHoursError in quiet hours, and MeteredError when nothing may be fetched over a metered link."""
        if not self._metered.deployment_bytes:
            self._metered.check(0)
        local = time.localtime(self._clock.wall())
        if self._quiet is not None and local.tm_hour * 60 + local.tm_min in self._quiet:
            raise QuietHoursError(f"nothing is downloaded in quiet hours, {self._quiet}")

    async def pass_blocks(self, wanted: int, *, wait: bool) -> int:
        """How many of `wanted` blocks may be requested now; they count as requested. 0 only where `wait` is false.

        Raises:
            QuietHoursError, MeteredError: quiet hours have begun, or the link is metered.
        """
        self.check_open()
        while not (allowed := self._bucket.blocks(self._clock.monotonic(), wanted)) and wait:
            await asyncio.sleep(max(0.001, self._bucket.wait_seconds(self._clock.monotonic())))
            self.check_open()
        self._bucket = self._bucket.take(self._clock.monotonic(), allowed)
        return allowed
