"""Looks now and then whether models, or the agent, hold far more memory than when they were loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from edgekit.serving.models.memory_growth import Grown

LOOK_SECONDS = 60.0


async def watch_growth(look: Callable[[], Awaitable[Sequence[Grown]]], tell: Callable[[Grown], None]) -> None:
    """Tell what `look` finds until cancelled."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for grown in await look():
            tell(grown)
