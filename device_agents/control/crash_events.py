"""Reports models whose processes crash: the first crash at once, later crashes in groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from edgekit.protocols import Clock

CRASH_SURVEY_SECONDS = 2.0
NOTIFY_SECONDS = 60.0

Counters = Callable[[], Mapping[str, Mapping[str, float]]]


class Crashed(NamedTuple):
    """Crashes of one model.

    Attributes:
        model: Its name.
        crashes: Crashes since the last event.
        total: Crashes since the agent started.
    """

    model: str
    crashes: int
    total: int


class CrashNotifier:
    """Decides when crashes are reported. Rules only.

    The first crash is reported at once; further crashes are reported together, once per `notify_seconds` at most.
    """

    def __init__(self, notify_seconds: float = NOTIFY_SECONDS) -> None:
        self._notify_seconds = notify_seconds
        self._reported: dict[str, tuple[int, float]] = {}  # model -> total at the last event, and its time

    def survey(self, counters: Mapping[str, Mapping[str, float]], now: float) -> list[Crashed]:
        """The crashes to report now.

        Args:
            counters: Rising counters by model, `crashes` among them.
            now: Monotonic seconds.
        """
        due = []
        for model, values in counters.items():
            total = int(values.get("crashes", 0))
            reported, at = self._reported.get(model, (0, -self._notify_seconds))
            if total > reported and now >= at + self._notify_seconds:
                due.append(Crashed(model, total - reported, total))
                self._reported[model] = total, now
        return due


async def watch_crashes(
    counters: Counters,
    notify: Callable[[Crashed], None],
    clock: Clock,
    *,
    survey_seconds: float = CRASH_SURVEY_SECONDS,
) -> None:
    """Read the counters at an interval, and call `notify` for crashes to report, until cancelled."""
    notifier = CrashNotifier()
    while True:
        await asyncio.sleep(survey_seconds)
        for crashed in notifier.survey(counters(), clock.monotonic()):
            notify(crashed)
