"""Waiting with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, awaitable: Awaitable[T]) -> T:
    """The result of `awaitable`; None waits for ever.

    Unlike `asyncio.wait_for` before Python 3.12, a cancellation that meets the result is not swallowed, so that a loop
    around this always ends when it is told to.

    Raises:
        asyncio.TimeoutError: it took longer; it has been cancelled.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
