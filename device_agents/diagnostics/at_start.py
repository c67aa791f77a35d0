"""The check of the cloud tier when the agent starts, so that an owner reads in the log what no request can get."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from edgekit.errors import CloudError, EdgekitError

_log = logging.getLogger(__name__)

SPREAD_SECONDS = 5.0  # devices that start together do not ask together
MAX_WAIT_SECONDS = 600.0


async def check_at_start(check: Callable[[], str], *, spread_seconds: float = SPREAD_SECONDS) -> None:
    """Log what differs between this device and the cloud tier, or that nothing does.

    While the tier cannot be reached, the check is made again, after waits that grow to ten minutes. Each finding is
    logged once.

    Args:
        check: Asks the tier; blocks. Raises CloudError where it cannot be reached, and another EdgekitError where it
            refuses the key or has other models or interfaces than the device.
        spread_seconds: The first check is made at a random time within it.
    """
    said, wait = "", spread_seconds
    while True:
        await asyncio.sleep(wait * random.random())
        try:
            _log.info("cloud tier: %s", await asyncio.to_thread(check))
            return
        except CloudError as error:
            found = str(error)
        except EdgekitError as error:
            _log.warning("cloud tier: %s. %s", error, error.advice)
            return
        if found != said:
            _log.warning("cloud tier: %s; models answer locally meanwhile", found)
        said, wait = found, min(max(2 * wait, 1.0), MAX_WAIT_SECONDS)
