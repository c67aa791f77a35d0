"""Word of loads that take long: TensorRT builds an engine for minutes and says nothing itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

log = logging.getLogger(__name__)

LoadListener = Callable[[str, str, float], None]

LONG_SECONDS, TELL_SECONDS = 10.0, 30.0
LOADING, LOADED = "model-loading", "model-loaded"


@contextlib.asynccontextmanager
async def told(model: str, listener: LoadListener | None, clock: Callable[[], float]) -> AsyncIterator[None]:
    """Call ``listener(LOADING, model, seconds)`` while the block takes long, and with LOADED when it has ended well.

    Args:
        model: Its name.
        listener: None for the log alone.
        clock: Monotonic seconds.
    """
    started = clock()

    async def tell() -> None:
        await asyncio.sleep(LONG_SECONDS)
        while True:
            seconds = clock() - started
            log.info("%s is being loaded since %.0f s", model, seconds)
            if listener is not None:
                listener(LOADING, model, seconds)
            await asyncio.sleep(TELL_SECONDS)

    telling = asyncio.ensure_future(tell())
    try:
        yield
    finally:
        telling.cancel()
    seconds = clock() - started
    if seconds >= LONG_SECONDS and listener is not None:
        listener(LOADED, model, seconds)
