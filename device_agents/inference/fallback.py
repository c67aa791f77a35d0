"""Calls the cloud tier: its endpoints in their order, within the model's limits, and checks the answer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from device_agents.inference.cloud import budget_rules
from device_agents.inference.cloud.answer_rules import Expected, checked
from device_agents.inference.cloud.budget_rules import Verdict
from device_agents.inference.cloud.budgets import Budgets
from device_agents.inference.cloud.endpoint_line import Call, EndpointLine
from device_agents.inference.cloud.endpoints import CloudEndpoint, CloudEndpoints
from device_agents.inference.cloud.failures import Failure, FallbackError, failure_of
from device_agents.inference.egress_rules import StreamPauses, release
from device_agents.inference.options import CloudOptions
from device_agents.inference.request import Outgoing
from device_agents.inference.routing_rules import Reason
from edgekit.errors import CloudError
from edgekit.protocols import Clock, CloudAnswer
from edgekit.tensors import Array

_log = logging.getLogger(__name__)

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
    Reason.DEADLINE: "the deadline is too near to call the cloud tier",
}
_OF_VERDICT = {
    Verdict.ALLOWED: None,
    Verdict.PACED: Reason.BUDGET_PACE,
    Verdict.SPENT: Reason.BUDGET_SPENT,
}
_NOT_CALLED = {Reason.CLOUD_BUSY: Failure.BUSY}  # other reasons have the same word as the failure


class _Request(NamedTuple):
    """The inputs that one request sends, and its time limit."""

    model: str
    there: str
    inputs: Mapping[str, Array]
    size: int
    score: float | None
    expected: Expected
    ends: float
    is_short: bool
    outgoing: Outgoing


class _Try(NamedTuple):
    """One call of one endpoint; `is_cut` where it may take less than the request waits."""

    endpoint: CloudEndpoint
    line: EndpointLine
    timeout: float
    is_cut: bool


class _Counts:
    """The counts of one model."""

    def __init__(self) -> None:
        self.failures: Counter[Failure] = Counter()
        self.answers: Counter[str] = Counter()
        self.retries = 0
        self.logged: dict[Failure, tuple[float, int]] = {}  # when, and the count then


class Fallback:
    """Calls the first endpoint that may be called, and after its failure a further one, within the budget of retries.

    Args:
        endpoints: The endpoints of the cloud tier.
        clock: Time for the breakers and deadlines.
        timeout_seconds: Longest wait of one request, whatever the number of endpoints is.
        options: Gives a model's options for the cloud tier.
        spread: Gives random numbers from 0 to 1 for the breakers.
        budgets: The daily budgets of calls and bytes.
        hold: Says why no call may be made at present (``offline``, ``metered``); None where calls may be made.
    """

    def __init__(
        self,
        endpoints: CloudEndpoints,
        clock: Clock,
        timeout_seconds: float,
        options: Callable[[str], CloudOptions],
        spread: Callable[[], float],
        budgets: Budgets,
        hold: Callable[[], Reason | None] = lambda: None,
    ) -> None:
        self._endpoints = endpoints
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._options = options
        self._spread = spread
        self._budgets, self._hold = budgets, hold
        self._pauses = StreamPauses()
        self._lines: dict[tuple[str, str, bool], EndpointLine] = {}
        self._counts: dict[str, _Counts] = {}

    def serves(self, model: str) -> bool:
        """True for a model that has an endpoint."""
        return bool(self._endpoints.of(model))

    def counters(self) -> dict[str, dict[str, float]]:
        """Rising counts by model, under their names in `METRICS`."""
        return {name: _named(counts) for name, counts in self._counts.items()}

    async def ask(
        self,
        model: str,
        outgoing: Outgoing,
        *,
        left_seconds: float | None,
        expected: Expected,
        score: float | None = None,
        stream: int | str | None = None,
    ) -> CloudAnswer:
        """Ask once. Everything that a request sends to the cloud tier passes here, and `release` decides on it.

        Args:
            model: Name on the device.
            outgoing: The inputs, in the form in which they are sent.
            left_seconds: Longest wait that the request allows; None for no deadline.
            expected: What the device knows of the answer.
            score: Score of the local answer, 0 to 1, which a budget that burns too fast may keep; None for none.
            stream: Id of the client's stream; None for none.

        Raises:
            FallbackError: there is no usable answer; the message says why.
        """
        options = self._options(model)
        released = release(options.send_inputs, model, outgoing.inputs)
        if released.fault:
            raise FallbackError(Reason.PRIVATE, released.fault)
        counts = self._counts.setdefault(model, _Counts())
        timeout = self._timeout_seconds if left_seconds is None else min(self._timeout_seconds, left_seconds)
        size, started = budget_rules.size_of(released.inputs), self._clock.monotonic()
        paused = None if stream is None or not options.stream_pause_seconds else (model, stream)
        if score is not None and not self._pauses.allow(paused, started, options.stream_pause_seconds):
            self._not_called(model, counts, FallbackError(Reason.STREAM_PAUSE, _HELD[Reason.STREAM_PAUSE]))
        request = _Request(
            model,
            options.cloud_model or model,
            released.inputs,
            size,
            score,
            expected,
            started + timeout,
            timeout < self._timeout_seconds,
            outgoing,
        )

        def begin() -> None:
            if paused is not None:
                self._pauses.note(paused, started)

        answer = await self._ask_in_order(request, counts, begin)
        counts.answers[answer.endpoint] += 1
        return answer

    async def _ask_in_order(self, request: _Request, counts: _Counts, begin: Callable[[], object]) -> CloudAnswer:
        """The answer of the first endpoint that gives one; `begin` is called before each call."""
        refused = failed = None
        self._endpoints.retries.called()
        endpoints = self._endpoints.of(request.model)
        for index, endpoint in enumerate(endpoints):
            try:
                one = self._try(request, endpoint, endpoints[index + 1 :])
                self._check_held(request, one)
                if failed is not None and not self._endpoints.retries.has_one:
                    counts.failures[Failure.RETRY_BUDGET] += 1
                    break
                one.line.admit(one.timeout, self._clock.monotonic())
            except FallbackError as error:
                refused = refused or error
                continue
            if failed is not None:
                counts.retries += self._endpoints.retries.take()
            begin()
            try:
                return await self._call(request, counts, one)
            except FallbackError as error:
                failed = error
        if failed is not None:
            raise failed
        await self._budgets.store(request.model)  # the clock may have been set, and the day with it
        self._not_called(request.model, counts, refused)

    def _line(self, request: _Request, endpoint: CloudEndpoint) -> EndpointLine:
        """A tier that takes tensors may refuse bytes, so each form has a breaker of its own."""
        key = (request.model, endpoint.name, request.outgoing.original)
        if key not in self._lines:
            self._lines[key] = EndpointLine(request.model, self._timeout_seconds)
        return self._lines[key]

    def _try(self, request: _Request, endpoint: CloudEndpoint, further: tuple[CloudEndpoint, ...]) -> _Try:
        """A try of an endpoint: it gets all that is left, or less where something else can answer."""
        line, left = self._line(request, endpoint), request.ends - self._clock.monotonic()
        others = sum(one.hold is None and self._line(request, one).is_closed for one in further)
        timeout = left
        if others or request.expected.local:
            timeout = min(left, line.times.try_seconds(left / (others + 1)))
        return _Try(endpoint, line, timeout, timeout < left)

    def _check_held(self, request: _Request, one: _Try) -> None:
        """Refuse a call that the owner's settings hold back at present, or that would come too late."""
        reason = self._hold() or one.endpoint.hold
        if reason is None:
            reason = _OF_VERDICT[self._budgets.judge(request.model, request.size, request.score)]
        if reason is None and one.timeout <= 0:
            reason = Reason.DEADLINE
        if reason is not None:
            raise FallbackError(reason, _HELD[reason])

    async def _call(self, request: _Request, counts: _Counts, one: _Try) -> CloudAnswer:
        """Call one endpoint. Raises FallbackError."""
        started = self._clock.monotonic()
        self._budgets.spend(request.model, request.size)
        with one.line.calling(self._clock.monotonic) as call:
            await self._budgets.store(request.model)
            try:
                answer = await one.endpoint.tier.infer(
                    request.there,
                    request.inputs,
                    timeout_seconds=one.timeout,
                    wanted=request.expected.needed,
                    **_steps(request.outgoing),
                )
                outputs = checked(answer.outputs, request.expected)
            except CloudError as error:
                call.has_ended = True
                raise self._failed(request, counts, one, call, error) from error
            call.has_ended = True
        one.line.succeeded(call, self._clock.monotonic() - started)
        return CloudAnswer(outputs, answer.version, answer.digest, one.endpoint.name)

    def _failed(self, request: _Request, counts: _Counts, one: _Try, call: Call, error: CloudError) -> FallbackError:
        """Count a failed call, log it, and let the breaker know of it."""
        failure = failure_of(error)
        if failure is Failure.REFUSED and request.outgoing.original:
            failure = Failure.BYTES_REFUSED
        counts.failures[failure] += 1
        self._note(request.model, counts, failure, error)
        one.line.failed(call, error, one.timeout, self._clock.monotonic(), self._spread())
        is_late = failure is Failure.TIMEOUT and request.is_short and not one.is_cut
        reason = Reason.BYTES_REFUSED if failure is Failure.BYTES_REFUSED else Reason.CLOUD_FAILED
        return FallbackError(Reason.DEADLINE if is_late else reason, str(error))

    def _not_called(self, model: str, counts: _Counts, error: FallbackError | None) -> NoReturn:
        """Count a request for which no endpoint was called, and raise the reason of the first."""
        error = error or FallbackError(Reason.NO_CLOUD, f"model {model!r} has no cloud tier")
        failure = _NOT_CALLED.get(error.reason) or Failure(error.reason.value)
        counts.failures[failure] += 1
        if error.reason in _HELD and error.reason is not Reason.DEADLINE:
            self._note(model, counts, failure, error, HELD_LOG_SECONDS)
        raise error

    def _note(
        self, model: str, counts: _Counts, failure: Failure, error: CloudError, seconds: float = LOG_SECONDS
    ) -> None:
        """Log the failure, unless one of its kind was logged a short time ago."""
        now, count = self._clock.monotonic(), counts.failures[failure]
        at, before = counts.logged.get(failure, (now - seconds, 0))
        if now - at < seconds:
            return
        counts.logged[failure] = now, count
        since = f" ({count - before - 1} more since the last message)" if count - before > 1 else ""
        _log.warning("cloud tier, model %s: %s: %s%s", model, failure.value, error, since)


def _steps(outgoing: Outgoing) -> dict[str, bool]:
    """Left out where there is nothing to say: clients of an application's own may have no such argument."""
    return {} if outgoing.postprocess is None else {"postprocess": outgoing.postprocess}


def _named(counts: _Counts) -> dict[str, float]:
    named = {f"cloud_failures.{failure.value}": float(n) for failure, n in counts.failures.items()}
    named |= {f"cloud_answers.{endpoint}": float(n) for endpoint, n in counts.answers.items() if endpoint}
    return {**named, "cloud_retries": float(counts.retries)}
