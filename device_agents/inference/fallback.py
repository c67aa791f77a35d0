"""Calls the cloud tier: limits concurrent calls, applies each model's circuit breaker, checks the answer."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from device_agents.inference import budget_rules
from device_agents.inference.answer_rules import Expected, checked
from device_agents.inference.breaker import Breaker, BreakerState, pace_of
from device_agents.inference.budget_rules import Verdict
from device_agents.inference.budgets import Budgets
from device_agents.inference.egress_rules import StreamPauses, release
from device_agents.inference.failures import CloudOverloadedError, CloudTimeoutError, Failure, failure_of
from device_agents.inference.options import CloudOptions
from device_agents.inference.routing_rules import Reason
from edgekit.errors import CloudError
from edgekit.protocols import Clock, CloudAnswer, CloudTier
from edgekit.tensors import Array

_log = logging.getLogger(__name__)

MAX_CLOUD_CALLS = 8  # of one model at one time
# A time-out says something about the cloud tier where the call had at least so much time, and several times the usual.
TIMEOUT_FLOOR_SECONDS, _USUAL_TIMES = 0.1, 2.0
_SMOOTHING = 0.2  # weight of the newest answer in the usual time of an answer
LOG_SECONDS = 60.0  # each kind of failure of a model is logged once in this time
HELD_LOG_SECONDS = 3600.0  # and each reason for which the owner has calls held back
_HELD = {
    Reason.OFFLINE: "this device is offline (settings offline and offline_file)",
    Reason.UNENCRYPTED: "the API key would travel unencrypted to another host: write https:// in cloud_url, or set "
    "cloud_unencrypted = true",
    Reason.METERED: "the link is metered, and metered_fallback is false",
    Reason.BUDGET_SPENT: "the call is more than what is left of the day's budget",
    Reason.BUDGET_PACE: "the day's budget is spent too fast; only less sure answers are sent",
    Reason.STREAM_PAUSE: "the stream was sent a short time ago (stream_pause_seconds)",
}
_OF_VERDICT = {
    Verdict.ALLOWED: None,
    Verdict.PACED: Reason.BUDGET_PACE,
    Verdict.SPENT: Reason.BUDGET_SPENT,
}


class FallbackError(CloudError):
    """The cloud tier gave no usable answer.

    Args:
        reason: Value for ``edgekit_reason``.
        message: For people.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Line:
    """The state of the calls for one model."""

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.calls = 0
        self.usual_seconds = 0.0
        self.failures: Counter[Failure] = Counter()
        self.logged: dict[Failure, tuple[float, int]] = {}  # when, and the count then

    @property
    def floor_seconds(self) -> float:
        return max(TIMEOUT_FLOOR_SECONDS, _USUAL_TIMES * self.usual_seconds)


class Fallback:
    """Calls the cloud tier while the model's circuit breaker allows it.

    Args:
        cloud: Client of the cloud tier.
        clock: Time for the breakers and deadlines.
        timeout_seconds: Longest wait for one answer.
        options: Gives a model's options for the cloud tier.
        spread: Gives random numbers from 0 to 1 for the breakers.
        budgets: The daily budgets of calls and bytes.
        hold: Says why no call may be made at present (``offline``, ``metered``); None where calls may be made.
    """

    def __init__(
        self,
        cloud: CloudTier,
        clock: Clock,
        timeout_seconds: float,
        options: Callable[[str], CloudOptions],
        spread: Callable[[], float],
        budgets: Budgets,
        hold: Callable[[], Reason | None] = lambda: None,
    ) -> None:
        self._cloud = cloud
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._options = options
        self._spread = spread
        self._budgets, self._hold = budgets, hold
        self._pauses = StreamPauses()
        self._lines: dict[str, _Line] = {}

    def failures(self) -> dict[str, dict[str, int]]:
        """Failures by model, then by `Failure`, rising."""
        return {name: {one.value: n for one, n in line.failures.items()} for name, line in self._lines.items()}

    async def ask(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        left_seconds: float | None,
        expected: Expected,
        score: float | None = None,
        stream: int | str | None = None,
    ) -> CloudAnswer:
        """Call once. Everything that a request sends to the cloud tier passes here, and `release` decides on it.

        Args:
            model: Name on the device.
            inputs: Logical inputs.
            left_seconds: Longest wait that the request allows; None for no deadline.
            expected: What the device knows of the answer.
            score: Score of the local answer, 0 to 1, which a budget that burns too fast may keep; None for none.
            stream: Id of the client's stream; None for none.

        Raises:
            FallbackError: there is no usable answer; the message says why.
        """
        options = self._options(model)
        released = release(options.send_inputs, model, inputs)
        if released.fault:
            raise FallbackError(Reason.PRIVATE, released.fault)
        line = self._lines.setdefault(model, _Line())
        timeout = self._timeout_seconds if left_seconds is None else min(self._timeout_seconds, left_seconds)
        size, started = budget_rules.size_of(released.inputs), self._clock.monotonic()
        paused = None if stream is None or not options.stream_pause_seconds else (model, stream)
        if score is not None and not self._pauses.allow(paused, started, options.stream_pause_seconds):
            self._hold_back(model, line, Reason.STREAM_PAUSE)
        self._check_held(model, line, size, score)
        self._admit(model, line, timeout)
        self._budgets.spend(model, size)
        if paused is not None:
            self._pauses.note(paused, started)
        with self._calling(line) as ended:
            await self._budgets.store(model)
            try:
                answer = await self._cloud.infer(
                    options.cloud_model or model, released.inputs, timeout_seconds=timeout, wanted=expected.needed
                )
                outputs = checked(answer.outputs, expected)
            except CloudError as error:
                ended()
                raise self._failed(model, line, error, timeout) from error
            ended()
        line.breaker = line.breaker.succeeded()
        spent = self._clock.monotonic() - started
        line.usual_seconds += (spent - line.usual_seconds) * (_SMOOTHING if line.usual_seconds else 1.0)
        return CloudAnswer(outputs, answer.version, answer.digest)

    def _check_held(self, model: str, line: _Line, size: int, score: float | None) -> None:
        """Refuse a call that the owner's settings hold back at present."""
        reason = self._hold() or _OF_VERDICT[self._budgets.judge(model, size, score)]
        if reason is not None:
            self._hold_back(model, line, reason)

    def _hold_back(self, model: str, line: _Line, reason: Reason) -> NoReturn:
        failure, error = Failure(reason.value), FallbackError(reason, _HELD[reason])
        line.failures[failure] += 1
        self._note(model, line, failure, error, HELD_LOG_SECONDS)
        raise error

    def _admit(self, model: str, line: _Line, timeout: float) -> None:
        """Refuse a call that the deadline, the limit of calls or the breaker forbids."""
        if timeout <= 0:
            line.failures[Failure.DEADLINE] += 1
            raise FallbackError(Reason.DEADLINE, "the deadline is too near to call the cloud tier")
        if line.calls >= MAX_CLOUD_CALLS:
            line.failures[Failure.BUSY] += 1
            message = f"{MAX_CLOUD_CALLS} requests of model {model!r} wait for the cloud tier already"
            raise FallbackError(Reason.CLOUD_BUSY, message)
        is_closed = line.breaker.state is BreakerState.CLOSED
        allowed = is_closed or timeout >= min(line.floor_seconds, self._timeout_seconds)  # else it would prove nothing
        if allowed:
            line.breaker, allowed = line.breaker.admit(self._clock.monotonic())
        if not allowed:
            line.failures[Failure.BREAKER_OPEN] += 1
            message = (
                f"the cloud tier failed {line.breaker.failures} times in a row for model {model!r} and is not called "
                f"at present; the last failure: {line.breaker.why}"
            )
            raise FallbackError(Reason.BREAKER_OPEN, message)

    @contextlib.contextmanager
    def _calling(self, line: _Line) -> Iterator[Callable[[], object]]:
        """Count one call; a call that does not report its end (it was cancelled) is abandoned."""

        def abandon() -> None:
            line.breaker = line.breaker.abandoned(self._clock.monotonic())

        line.calls += 1
        with contextlib.ExitStack() as stack:
            stack.callback(abandon)
            try:
                yield stack.pop_all
            finally:
                line.calls -= 1

    def _failed(self, model: str, line: _Line, error: CloudError, timeout: float) -> FallbackError:
        """Count a failed call, log it, and let the breaker know of it."""
        now, failure, is_short = self._clock.monotonic(), failure_of(error), timeout < self._timeout_seconds
        line.failures[failure] += 1
        self._note(model, line, failure, error)
        reason = Reason.DEADLINE if failure is Failure.TIMEOUT and is_short else Reason.CLOUD_FAILED
        if isinstance(error, CloudTimeoutError) and is_short and timeout < line.floor_seconds:
            line.breaker = line.breaker.abandoned(now)  # the deadline was short; this is no failure of the cloud tier
        elif isinstance(error, CloudOverloadedError) and error.retry_after_seconds is not None:
            line.breaker = line.breaker.held(now, self._spread(), error.retry_after_seconds, str(error))
        else:
            line.breaker = line.breaker.failed(now, self._spread(), pace_of(failure), str(error))
        return FallbackError(reason, str(error))

    def _note(self, model: str, line: _Line, failure: Failure, error: CloudError, seconds: float = LOG_SECONDS) -> None:
        """Log the failure, unless one of its kind was logged a short time ago."""
        now, count = self._clock.monotonic(), line.failures[failure]
        at, before = line.logged.get(failure, (now - seconds, 0))
        if now - at < seconds:
            return
        line.logged[failure] = now, count
        since = f" ({count - before - 1} more since the last message)" if count - before > 1 else ""
        _log.warning("cloud tier, model %s: %s: %s%s", model, failure.value, error, since)
