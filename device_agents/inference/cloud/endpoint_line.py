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


class EndpointLine:
    """The calls of one model at one endpoint.

    Args:
        model: Its name, for messages.
        longest: Longest wait for an answer that the settings allow, in seconds.
    """

    def __init__(self, model: str, longest: float) -> None:
        self._model, self._longest = model, longest
        self._breaker, self._calls = Breaker(), 0
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
    def calling(self, now: Callable[[], float]) -> Iterator[Callable[[], object]]:
        """Count one call; a call that does not report its end (it was cancelled) is abandoned."""

        def abandon() -> None:
            self._breaker = self._breaker.abandoned(now())

        self._calls += 1
        with contextlib.ExitStack() as stack:
            stack.callback(abandon)
            try:
                yield stack.pop_all
            finally:
                self._calls -= 1

    def succeeded(self, seconds: float) -> None:
        """A call was answered after `seconds`."""
        self._breaker, self.times = self._breaker.succeeded(), self.times.answered(seconds)

    def failed(self, error: CloudError, timeout: float, now: float, spread: float) -> None:
        """A call of at most `timeout` seconds failed. `spread` is a random number from 0 to 1."""
        if isinstance(error, CloudTimeoutError):
            floor, self.times = self.times.floor_seconds, self.times.timed_out()
            if timeout < min(floor, self._longest):
                self._breaker = self._breaker.abandoned(now)  # too short to be a failure of the cloud tier
                return
        if isinstance(error, CloudOverloadedError) and error.retry_after_seconds is not None:
            self._breaker = self._breaker.held(now, spread, error.retry_after_seconds, str(error))
        else:
            self._breaker = self._breaker.failed(now, spread, pace_of(failure_of(error)), str(error))
