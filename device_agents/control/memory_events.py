"""Reports models, or the agent, that hold far more memory than after loading."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from edgekit.serving.models.memory_growth import Grown

SURVEY_SECONDS = 60.0


async def watch_growth(
    survey: Callable[[], Awaitable[Sequence[Grown]]],
    notify: Callable[[Grown], None],
    *,
    survey_seconds: float = SURVEY_SECONDS,
) -> None:
    """Call `survey` at an interval, and `notify` with each of its results, until cancelled."""
    while True:
        await asyncio.sleep(survey_seconds)
        for grown in await survey():
            notify(grown)
