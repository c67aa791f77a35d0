"""Reports of loads that take long: TensorRT builds an engine for minutes and reports nothing itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

log = logging.getLogger(__name__)

LoadListener = Callable[[str, str, float], None]

LONG_SECONDS, REPEAT_SECONDS = 10.0, 30.0
LOADING, LOADED = "model-loading", "model-loaded"


class LoadProgress:
    """Reports loads that take long, in the log and to a listener.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._listener: LoadListener | None = None
        self._long_seconds, self._repeat_seconds = LONG_SECONDS, REPEAT_SECONDS

    def listen(
        self, listener: LoadListener, *, long_seconds: float = LONG_SECONDS, repeat_seconds: float = REPEAT_SECONDS
    ) -> None:
        """Call ``listener(kind, model, seconds)`` for loads that take long.

        Args:
            listener: Called with LOADING during a long load, and with LOADED after it.
            long_seconds: Time of the first call after the begin of a load; shorter loads are not reported.
            repeat_seconds: Time between two calls.
        """
        self._listener = listener
        self._long_seconds, self._repeat_seconds = long_seconds, repeat_seconds

    @contextlib.asynccontextmanager
    async def report(self, model: str) -> AsyncIterator[None]:
        """Report the load of a model that happens in the block; LOADED only where the block ends without an error."""
        started = self._clock()
        reporting = asyncio.ensure_future(self._repeat(model, started))
        try:
            yield
        finally:
            reporting.cancel()
        seconds = self._clock() - started
        if seconds >= self._long_seconds and self._listener is not None:
            self._listener(LOADED, model, seconds)

    async def _repeat(self, model: str, started: float) -> None:
        await asyncio.sleep(self._long_seconds)
        while True:
            seconds = self._clock() - started
            log.info("%s has been loading for %.0f s", model, seconds)
            if self._listener is not None:
                self._listener(LOADING, model, seconds)
            await asyncio.sleep(self._repeat_seconds)
