"""Values of a comparison of a bundle with the active one, before it is activated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple

import msgspec

from edgekit.mqtt.messages import SHADOW_DIGITS, Shadow

MAX_COUNT = 2**32 - 1

Count = Annotated[int, msgspec.Meta(ge=0)]


class ShadowCounts(msgspec.Struct, frozen=True):
    """The comparison of a bundle with the active one so far; all but `seconds` as `Shadow`.

    Attributes:
        seconds: Time that the comparison has taken, in all runs of the agent.
        run: Random number of the comparison.
    """

    compared: Count = 0
    differed: Count = 0
    failed: Count = 0
    dropped: Count = 0
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    ended: str = ""
    run: Count = 0

    def message(self, digest: str) -> Shadow:
        """The report about the bundle with this digest."""
        return Shadow(
            digest[:SHADOW_DIGITS],
            compared=min(self.compared, MAX_COUNT),
            differed=min(self.differed, MAX_COUNT),
            failed=min(self.failed, MAX_COUNT),
            dropped=min(self.dropped, MAX_COUNT),
            ended=self.ended,
            run=min(self.run, MAX_COUNT),
        )


class ShadowTask(NamedTuple):
    """A comparison of a bundle with the active one.

    Attributes:
        inputs, seconds: It ends after so many inputs, or so many seconds.
        counts: Result of earlier runs of the agent; where it has ended, nothing is compared.
        note: Stores the result; called from time to time and at the end, also of a cancelled comparison.
    """

    inputs: int
    seconds: float
    counts: ShadowCounts
    note: Callable[[ShadowCounts], Awaitable[None]]
