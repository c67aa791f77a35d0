"""Runs blocking functions in threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in a thread and wait for its end, also when cancelled.

    A thread cannot be stopped, so a cancelled caller must wait: later work may use the same files.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it as never retrieved
        raise


async def in_daemon_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in a daemon thread. A cancelled caller leaves it, and the process can end while it runs.

    For native code that may hang, such as a model's first run.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: Exception | None) -> None:
        if future.done():
            return  # the caller was cancelled
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # without an error there is a result

    def work() -> None:
        result, error = None, None
        try:
            result = function(*args, **kwargs)
        except Exception as caught:  # raised in the caller, which waits for the future
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed, and no caller waits any more
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=work, name=function.__name__, daemon=True).start()
    return await future
