"""Word of models whose processes crash: soon after the first time, and then in lots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from edgekit.protocols import Clock

LOOK_SECONDS = 2.0
TELL_SECONDS = 60.0

Counters = Callable[[], Mapping[str, Mapping[str, float]]]


class Crashed(NamedTuple):
    """What is to be told of one model: crashes since it was told last, and since the agent began."""

    model: str
    crashes: int
    total: int


class CrashNews:
    """Decides what is told when. Rules only: the first crash at once, each further lot a minute after the last."""

    def __init__(self, tell_seconds: float = TELL_SECONDS) -> None:
        self._tell_seconds = tell_seconds
        self._told: dict[str, tuple[int, float]] = {}  # how many, and when

    def look(self, counters: Mapping[str, Mapping[str, float]], now: float) -> list[Crashed]:
        """What is to be told now.

        Args:
            counters: Rising counters by model, `crashes` among them.
            now: Monotonic seconds.
        """
        news = []
        for model, found in counters.items():
            total = int(found.get("crashes", 0))
            told, at = self._told.get(model, (0, -self._tell_seconds))
            if total > told and now >= at + self._tell_seconds:
                news.append(Crashed(model, total - told, total))
                self._told[model] = total, now
        return news


async def watch_crashes(counters: Counters, tell: Callable[[Crashed], None], clock: Clock) -> None:
    """Tell of crashes until cancelled."""
    news = CrashNews()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for crashed in news.look(counters(), clock.monotonic()):
            tell(crashed)
