"""The circuit breaker of one model in the cloud tier. Pure: `now` and random numbers are arguments."""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from device_agents.inference.cloud.failures import Failure

FAILURES_TO_OPEN = 3
FIRST_COOL_DOWN_SECONDS = 1.0
LONGEST_COOL_DOWN_SECONDS = 30.0
SLOW_COOL_DOWN_SECONDS = 30.0
LONGEST_SLOW_COOL_DOWN_SECONDS = 600.0
LONGEST_RETRY_AFTER_SECONDS = 600.0


class Pace(NamedTuple):
    """How a kind of failure opens the breaker.

    Attributes:
        failures: So many in a row open it.
        first_seconds, longest_seconds: First and longest cool-down; it doubles with every failed probe.
    """

    failures: int
    first_seconds: float
    longest_seconds: float


PASSING = Pace(FAILURES_TO_OPEN, FIRST_COOL_DOWN_SECONDS, LONGEST_COOL_DOWN_SECONDS)
REFUSED = Pace(FAILURES_TO_OPEN, SLOW_COOL_DOWN_SECONDS, LONGEST_SLOW_COOL_DOWN_SECONDS)
WRONG_SETTINGS = Pace(1, SLOW_COOL_DOWN_SECONDS, LONGEST_SLOW_COOL_DOWN_SECONDS)
_PACES = {
    Failure.REFUSED: REFUSED,  # of this request, or of every request
    Failure.BYTES_REFUSED: REFUSED,
    Failure.WRONG_INTERFACE: REFUSED,  # of one answer, or of every answer
    Failure.UNAUTHORIZED: WRONG_SETTINGS,
    Failure.NOT_FOUND: WRONG_SETTINGS,
}


def pace_of(failure: Failure) -> Pace:
    """The pace of a kind of failure: slow where only a person can mend it."""
    return _PACES.get(failure, PASSING)


class BreakerState(str, enum.Enum):
    """CLOSED lets calls through, OPEN does not, HALF_OPEN waits for the result of one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker(msgspec.Struct, frozen=True):
    """Circuit breaker: opens after some failures in a row, then allows one probe after each cool-down.

    A refused connection counts as one failure, like any other failure: it costs no time, and the breaker stays closed
    for a cloud tier that restarts within two requests. The cool-down doubles with every failed probe, up to the
    longest one of the failure's pace.

    Attributes:
        state: Present state.
        failures: Failures in a row.
        cool_down_seconds: The last cool-down; 0 while closed.
        opens_at: Monotonic seconds from which the next probe is allowed.
        why: The last failure, for people.
    """

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    cool_down_seconds: float = 0.0
    opens_at: float = 0.0
    why: str = ""

    def admit(self, now: float) -> tuple[Breaker, bool]:
        """The next breaker, and whether a call is allowed now.

        An allowed call must end in `succeeded`, `failed`, `held` or `abandoned`.
        """
        if self.state is BreakerState.CLOSED:
            return self, True
        if self.state is BreakerState.OPEN and now >= self.opens_at:
            return msgspec.structs.replace(self, state=BreakerState.HALF_OPEN), True
        return self, False

    def succeeded(self) -> Breaker:
        """A call was answered."""
        return Breaker()

    def failed(self, now: float, spread: float, pace: Pace = PASSING, why: str = "") -> Breaker:
        """A call failed.

        Args:
            now: Monotonic seconds.
            spread: Random number, 0 to 1; shortens the cool-down by up to half, so that devices do not retry together.
            pace: Of this kind of failure.
            why: The failure, for people.
        """
        failures = self.failures + 1
        counted = msgspec.structs.replace(self, failures=failures, why=why)
        if self.state is BreakerState.CLOSED and failures < pace.failures:
            return counted
        if self.state is BreakerState.OPEN:
            return counted  # the call began before the breaker opened
        cool_down = min(max(self.cool_down_seconds * 2, pace.first_seconds), pace.longest_seconds)
        return Breaker(BreakerState.OPEN, failures, cool_down, now + cool_down * (1 - spread / 2), why)

    def held(self, now: float, spread: float, retry_after_seconds: float, why: str = "") -> Breaker:
        """The cloud tier said when to call again.

        Args:
            now: Monotonic seconds.
            spread: Random number, 0 to 1; lengthens the wait by up to half.
            retry_after_seconds: The tier's wish; at most LONGEST_RETRY_AFTER_SECONDS are waited.
            why: The failure, for people.
        """
        wait = min(max(retry_after_seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS) * (1 + spread / 2)
        opens_at = max(now + wait, self.opens_at if self.state is BreakerState.OPEN else 0.0)
        return Breaker(BreakerState.OPEN, self.failures + 1, self.cool_down_seconds, opens_at, why)

    def abandoned(self, now: float) -> Breaker:
        """The caller gave up before the call ended; this is no failure of the cloud tier."""
        if self.state is BreakerState.HALF_OPEN:
            return msgspec.structs.replace(self, state=BreakerState.OPEN, opens_at=now)
        return self
