"""Ends a process whose event loop stands still, so that its supervisor starts it again.

A model that is fast enough runs on the event loop. While such a run hangs in native code, nothing else of the agent
runs: no deadline passes, no signal is handled. systemd's watchdog notices that; this one works without systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import threading
from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

LOOKS = 4  # in the time that the loop may stand still
EXIT_CODE = 1


@contextlib.asynccontextmanager
async def watched(seconds: float) -> AsyncIterator[None]:
    """Inside, end the process when the running event loop handles nothing for `seconds`; 0 watches nothing."""
    if not seconds:
        yield
        return
    over = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(asyncio.get_running_loop(), seconds, over), name="watchdog", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        over.set()


def _watch(loop: asyncio.AbstractEventLoop, seconds: float, over: threading.Event) -> None:
    """Look at the loop until `over`. Looks are counted, and not seconds: a process that was stopped did not look."""
    handled, missed = threading.Event(), 0
    handled.set()
    while not over.wait(seconds / LOOKS):
        missed = 0 if handled.is_set() else missed + 1
        if missed >= LOOKS:
            _end(seconds)
        if not missed:
            handled.clear()
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
                loop.call_soon_threadsafe(handled.set)


def _end(seconds: float) -> None:
    log.critical(
        "the event loop has stood still for %g s, probably in a run of a model; the process ends, to be started again",
        seconds,
    )
    faulthandler.dump_traceback()
    logging.shutdown()
    os._exit(EXIT_CODE)
