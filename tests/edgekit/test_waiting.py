"""Waiting with a time limit: results, time-outs and cancellations."""

import asyncio

import pytest

from edgekit.waiting import within


async def test_the_result_comes_through_and_so_does_the_error() -> None:
    """`within` returns the result or raises the error of the work, with and without a limit."""

    async def fail() -> None:
        raise ValueError("broken")

    assert await within(10, asyncio.sleep(0, "done")) == "done"
    assert await within(None, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="broken"):
        await within(10, fail())


async def test_work_that_takes_too_long_is_cancelled() -> None:
    """After a time-out the work is cancelled."""
    work = asyncio.ensure_future(asyncio.Event().wait())
    with pytest.raises(asyncio.TimeoutError):
        await within(0.001, work)
    await asyncio.wait([work])
    assert work.cancelled()


async def test_a_cancellation_that_meets_the_result_is_not_lost() -> None:
    """The caller is cancelled while the result arrives; asyncio.wait_for before Python 3.12 loses this cancellation."""
    work: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    caller = asyncio.ensure_future(within(10, work))
    await asyncio.sleep(0)
    work.set_result("done")
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()


async def test_a_caller_that_goes_takes_its_work_along() -> None:
    """A cancelled caller cancels its work."""
    work = asyncio.ensure_future(asyncio.Event().wait())
    caller = asyncio.ensure_future(within(None, work))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller, work])
    assert work.cancelled()
