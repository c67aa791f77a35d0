"""The state of the calls of one model at one endpoint: breaker, calls under way, times of answers. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from device_agents.inference.cloud.answer_times import AnswerTimes
from device_agents.inference.cloud.breaker import Breaker, BreakerState, pace_of
from device_agents.inference.cloud.failures import CloudOverloadedError, CloudTimeoutError, FallbackError, failure_of
from device_agents.inference.routing_rules import Reason
from edgekit.errors import CloudError

MAX_CLOUD_CALLS = 8  # of one model at one endpoint, at one time


class Call:
    """One call under way.

    Attributes:
        openings: How often the breaker had opened when the call began.
        has_ended: Set when the call has ended, whatever its outcome is.
    """

    def __init__(self, openings: int) -> None:
        self.openings, self.has_ended = openings, False


class EndpointLine:
    """The calls of one model at one endpoint.

    Args:
        model: Its name, for messages.
        longest: Longest wait for an answer that the settings allow, in seconds.
    """

    def __init__(self, model: str, longest: float) -> None:
        self._model, self._longest = model, longest
        self._breaker, self._calls = Breaker(), 0
        self._openings = 0  # how often the breaker has opened
        self.times = AnswerTimes()

    @property
    def is_closed(self) -> bool:
        """True while the breaker lets calls through."""
        return self._breaker.state is BreakerState.CLOSED

    def admit(self, timeout: float, now: float) -> None:
        """Let a call of at most `timeout` seconds begin. `now` is monotonic seconds, as everywhere here.

        Raises:
            FallbackError: the limit of calls or the breaker forbids it.
        """
        if self._calls >= MAX_CLOUD_CALLS:
            message = f"{MAX_CLOUD_CALLS} requests of model {self._model!r} wait for the cloud tier already"
            raise FallbackError(Reason.CLOUD_BUSY, message)
        allowed = self.is_closed or timeout >= min(self.times.floor_seconds, self._longest)  # else it proves nothing
        if allowed:
            self._breaker, allowed = self._breaker.admit(now)
        if not allowed:
            message = (
                f"the cloud tier failed {self._breaker.failures} times in a row for model {self._model!r} and is not "
                f"called at present; the last failure: {self._breaker.why}"
            )
            raise FallbackError(Reason.BREAKER_OPEN, message)

    @contextlib.contextmanager
    def calling(self, now: Callable[[], float]) -> Iterator[Call]:
        """Count a call that `admit` has let through; one that reports no end (it was cancelled) is abandoned."""
        call = Call(self._openings)
        self._calls += 1
        try:
            yield call
        finally:
            self._calls -= 1
            if not call.has_ended and not self._is_old(call):
                self._breaker = self._breaker.abandoned(now())

    def succeeded(self, call: Call, seconds: float) -> None:
        """A call was answered after `seconds`."""
        self.times = self.times.answered(seconds)
        if not self._is_old(call):
            self._breaker = self._breaker.succeeded()

    def failed(self, call: Call, error: CloudError, timeout: float, now: float, spread: float) -> None:
        """A call of at most `timeout` seconds failed. `spread` is a random number from 0 to 1."""
        floor = self.times.floor_seconds
        if isinstance(error, CloudTimeoutError):
            self.times = self.times.timed_out()
        wait = error.retry_after_seconds if isinstance(error, CloudOverloadedError) else None
        if self._is_old(call):
            if wait is not None and self._breaker.state is BreakerState.OPEN:
                self._breaker = self._breaker.held(now, spread, wait, str(error))
            return
        was_open = self._breaker.state is BreakerState.OPEN
        if isinstance(error, CloudTimeoutError) and timeout < min(floor, self._longest):
            self._breaker = self._breaker.abandoned(now)  # too short to be a failure of the cloud tier
        elif wait is not None:
            self._breaker = self._breaker.held(now, spread, wait, str(error))
        else:
            self._breaker = self._breaker.failed(now, spread, pace_of(failure_of(error)), str(error))
        self._openings += self._breaker.state is BreakerState.OPEN and not was_open

    def _is_old(self, call: Call) -> bool:
        """True for a call that began before the breaker opened: its end says nothing of the probe after that."""
        return call.openings != self._openings
