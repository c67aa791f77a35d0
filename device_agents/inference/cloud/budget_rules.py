"""Rules of the daily budgets of calls and bytes for the cloud tier. Pure: `now` is an argument.

A budget is spread over its day: while a larger share of it is spent than of the day has passed, only the least sure
answers are sent. With the share L of the budget left and the share T of the day left, an answer that the device has is
sent where its score is below (L / T) ** 8. So the device sends less as the budget burns. With n times more answers than
the budget allows, and scores spread evenly, L / T settles where n (L / T) ** 7 = 1, and the budget lasts for the day. A
power of 1 has no such point: the first hours would spend all.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.tensors import Array

DAY_SECONDS = 86_400.0
EARLIEST_CLOCK = 1_735_689_600.0  # 2025: a clock that shows an earlier time was not set since the device has power
RESERVE_SHARE = 0.01  # of a budget; it is stored as spent in advance, so that not every call is written
_POWER = 8
_LENGTH_BYTES = 4  # before each element of BYTES on the wire


class Budget(msgspec.Struct, frozen=True):
    """Most calls, and most bytes of input tensors, in a day; 0 for no limit."""

    calls: int = 0
    bytes: int = 0

    @property
    def limited(self) -> bool:
        """True where there is a limit."""
        return bool(self.calls or self.bytes)


class Spent(msgspec.Struct, frozen=True):
    """Calls and bytes of the day that began at `begun`, in seconds since 1970."""

    begun: float = 0.0
    calls: Annotated[int, Meta(ge=0)] = 0
    bytes: Annotated[int, Meta(ge=0)] = 0


class Verdict(str, enum.Enum):
    """Whether a call is within a budget."""

    ALLOWED = "allowed"
    PACED = "paced"  # kept back, so that the budget lasts for the day
    SPENT = "spent"  # the call is more than what is left


def today(spent: Spent, now: float, up_seconds: float = 0.0) -> Spent:
    """The calls and bytes spent in the present day. A day begins at the first call after the end of the last one.

    Args:
        spent: As it was stored.
        now: Seconds since 1970. A clock that was set back begins the day anew, and what was spent stays spent. While
            the clock is not set, as after a start without a battery, the day goes on; setting it ends no day.
        up_seconds: How long the device has run at least; a day that began before has ended by then.
    """
    if not (spent.calls or spent.bytes):
        return Spent(begun=now)
    if now < EARLIEST_CLOCK <= spent.begun:
        return spent if up_seconds < DAY_SECONDS else Spent(begun=now)
    if now < spent.begun or spent.begun < EARLIEST_CLOCK <= now:
        return msgspec.structs.replace(spent, begun=now)
    return Spent(begun=now) if now - spent.begun >= DAY_SECONDS else spent


def judge(budget: Budget, spent: Spent, size: int, score: float | None, now: float) -> Verdict:
    """Whether a call may be made.

    Args:
        budget: The limits.
        spent: From `today`.
        size: Bytes of the call.
        score: Score of the local answer, 0 to 1; None where there is none, which is never kept back for the pace.
        now: Seconds since 1970.
    """
    if (budget.calls and spent.calls + 1 > budget.calls) or (budget.bytes and spent.bytes + size > budget.bytes):
        return Verdict.SPENT
    if score is None:
        return Verdict.ALLOWED
    left_time = 1 - max(now - spent.begun, 0.0) / DAY_SECONDS
    limits = [(budget.calls, spent.calls), (budget.bytes, spent.bytes)]
    left = min((1 - used / limit for limit, used in limits if limit), default=1.0)
    return Verdict.ALLOWED if left >= left_time or score < (left / left_time) ** _POWER else Verdict.PACED


def add(spent: Spent, size: int) -> Spent:
    """`spent` after one more call of `size` bytes."""
    return msgspec.structs.replace(spent, calls=spent.calls + 1, bytes=spent.bytes + size)


def reserved(budget: Budget, spent: Spent) -> Spent:
    """The value to store: a little more than was spent; a device that loses its power gives up the difference."""
    return msgspec.structs.replace(
        spent,
        calls=max(spent.calls, min(spent.calls + int(RESERVE_SHARE * budget.calls), budget.calls)),
        bytes=max(spent.bytes, min(spent.bytes + int(RESERVE_SHARE * budget.bytes), budget.bytes)),
    )


def covers(budget: Budget, stored: Spent, spent: Spent) -> bool:
    """True while what is stored is not less than what is spent, so that nothing needs to be written.

    What the budget does not limit has no reserve, and does not count: it would be written with every call.
    """
    calls = not budget.calls or stored.calls >= spent.calls
    return stored.begun == spent.begun and calls and (not budget.bytes or stored.bytes >= spent.bytes)


def size_of(inputs: Mapping[str, Array]) -> int:
    """Bytes of input tensors in the protocol's binary form."""
    return sum(
        sum(_LENGTH_BYTES + len(one) for one in value.ravel().tolist()) if value.dtype.kind == "O" else value.nbytes
        for value in inputs.values()
    )
