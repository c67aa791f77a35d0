"""Blocking work in threads that do not keep the process from ending."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

PATIENCE_SECONDS = 3.0

T = TypeVar("T")


async def in_daemon_thread(work: Callable[..., T], *args: object) -> T:
    """The result of ``work(*args)``, which may wait for a server or a disk that never answers.

    `asyncio.to_thread` keeps the process from ending until the work has ended. Here, a caller that is cancelled waits
    for PATIENCE_SECONDS at most, so that work in the middle of a file can end, and then leaves it alone.

    Raises:
        Exception: as `work`.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[object] = loop.create_future()
    done.add_done_callback(lambda future: future.cancelled() or future.exception())  # retrieved: nobody may wait

    def finish(error: Exception | None, result: object) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def run() -> None:
        error, result = None, None
        try:
            result = work(*args)
        except Exception as caught:  # handed to the caller, whatever it is
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(finish, error, result)

    threading.Thread(target=run, daemon=True, name=getattr(work, "__name__", "work")).start()
    try:
        return cast(T, await asyncio.shield(done))
    except asyncio.CancelledError:
        await asyncio.wait((done,), timeout=PATIENCE_SECONDS)
        raise
