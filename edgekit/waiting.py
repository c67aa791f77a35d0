"""Waiting with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """The result of `work`; after `seconds` it is cancelled. None waits for ever.

    Unlike `asyncio.wait_for` before Python 3.12, this never swallows the cancellation of its caller, which happens
    there when `work` is done at the same moment, and would leave whoever stops the caller waiting for ever.

    Raises:
        asyncio.TimeoutError: the time is over.
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
