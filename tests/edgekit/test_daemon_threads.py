"""Blocking work that may never end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from edgekit import daemon_threads
from edgekit.daemon_threads import in_daemon_thread


async def test_results_and_errors_come_back() -> None:
    """As from `asyncio.to_thread`."""
    assert await in_daemon_thread(max, 3, 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(divmod, 1, 0)


async def test_a_cancelled_caller_waits_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that ends soon is waited for, and work that does not is left alone."""
    monkeypatch.setattr(daemon_threads, "PATIENCE_SECONDS", 0.3)
    for ends in (True, False):
        begun, release = threading.Event(), threading.Event()

        def work(begun: threading.Event = begun, release: threading.Event = release) -> None:
            begun.set()
            release.wait(30)

        task = asyncio.ensure_future(in_daemon_thread(work))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        if ends:
            release.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        release.set()
