"""Waiting with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled after `seconds`; None waits without limit.

    Unlike `asyncio.wait_for` before Python 3.12, this never loses a cancellation of its caller. There, it is lost if
    `work` ends at the same moment, and code that waits for the caller to stop then waits forever.

    Raises:
        asyncio.TimeoutError: The time is over.
    """
    future = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait((future,), timeout=seconds)
    finally:
        if not future.done():
            future.cancel()
    if not done:
        raise asyncio.TimeoutError
    return future.result()
