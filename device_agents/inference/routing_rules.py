"""Rules that choose a request's route: the local model, the cloud tier, or local as a substitute for the cloud tier.

The reasons are checked in this order: a model with state, the request's own route, no local model, an overloaded or
failing local model, a low score.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec
import numpy as np

from edgekit.bundle.manifest import Task
from edgekit.errors import CloudError
from edgekit.tensors import Array

AUTO, LOCAL_ONLY, CLOUD_ONLY = "auto", "local-only", "cloud-only"
ROUTES = (AUTO, LOCAL_ONLY, CLOUD_ONLY)


class CloudRefusedError(CloudError):
    """The cloud tier answered that it does not accept this request (4xx). It may accept other requests."""


class Route(str, enum.Enum):
    """Where an answer comes from; ``edgekit_route`` of a response holds the value."""

    LOCAL = "local"
    CLOUD = "cloud"
    DEGRADED = "degraded"  # the local answer, because the cloud tier was wanted and did not answer
    NONE = "none"  # no route that the request allows is available; the request fails


class Reason(str, enum.Enum):
    """Why a route was chosen; ``edgekit_reason`` of a response holds the value."""

    REQUESTED = "requested"
    NO_LOCAL_MODEL = "no-local-model"
    OVERLOADED = "overloaded"
    LOCAL_ERROR = "local-error"
    LOW_SCORE = "low-score"
    CONFIDENT = "confident"
    NO_SCORE = "no-score"  # the task has no score, so the local answer is used
    NO_CLOUD = "no-cloud"  # no cloud tier is configured
    BREAKER_OPEN = "breaker-open"
    CLOUD_BUSY = "cloud-busy"
    CLOUD_FAILED = "cloud-failed"
    DEADLINE = "deadline"
    STATEFUL = "stateful"  # the model has state, which is on this device only


class Decision(msgspec.Struct, frozen=True):
    """A route and the reason for it."""

    route: Route
    reason: Reason


_STATEFUL = Decision(Route.LOCAL, Reason.STATEFUL)
_LOCAL = Decision(Route.LOCAL, Reason.REQUESTED)
_NO_SCORE = Decision(Route.LOCAL, Reason.NO_SCORE)
_CONFIDENT = Decision(Route.LOCAL, Reason.CONFIDENT)


def before_running(route: str, *, has_local: bool, has_cloud: bool, stateful: bool = False) -> Decision:
    """The first route of a request, before a model has run. `route` is one of ROUTES.

    A request of a stream (`stateful`) is never sent to the cloud tier, whatever the settings are: the stream's state
    is on this device, and the cloud tier would answer from another one.
    """
    if stateful:
        if route == CLOUD_ONLY:
            return Decision(Route.NONE, Reason.STATEFUL)
        return _STATEFUL if has_local else Decision(Route.NONE, Reason.NO_LOCAL_MODEL)
    if route == CLOUD_ONLY:
        return Decision(Route.CLOUD, Reason.REQUESTED) if has_cloud else Decision(Route.NONE, Reason.NO_CLOUD)
    if has_local:
        return _LOCAL
    if route == AUTO and has_cloud:
        return Decision(Route.CLOUD, Reason.NO_LOCAL_MODEL)
    return Decision(Route.NONE, Reason.NO_LOCAL_MODEL)


def after_running(
    route: str,
    *,
    score: float | None,
    threshold: float,
    has_cloud: bool,
    usable: bool = True,
    stateful: bool = False,
) -> Decision:
    """The route after the local model has answered: local if that answer is good enough, else the cloud tier.

    Args:
        route: ``auto`` or ``local-only``.
        score: Score of the answer, 0 to 1; None where the task has no score.
        threshold: Answers with a lower score go to the cloud.
        has_cloud: True when a cloud tier is configured.
        usable: False for an answer that holds NaN.
        stateful: True for a request of a model with state, which only this device answers.
    """
    if stateful:
        return _STATEFUL if usable or route == LOCAL_ONLY else Decision(Route.DEGRADED, Reason.LOCAL_ERROR)
    if route == LOCAL_ONLY:
        return _LOCAL
    if not usable:
        return Decision(Route.CLOUD if has_cloud else Route.DEGRADED, Reason.LOCAL_ERROR)
    if score is None:
        return _NO_SCORE
    if score >= threshold:
        return _CONFIDENT
    return Decision(Route.CLOUD, Reason.LOW_SCORE) if has_cloud else Decision(Route.LOCAL, Reason.NO_CLOUD)


def usable(outputs: Mapping[str, Array]) -> bool:
    """False when an output holds NaN."""
    for value in outputs.values():  # noqa: SIM110 - runs per request: the loop is twice as fast as all(), and so are bytes
        if value.dtype.kind == "f" and 1 in np.isnan(value).tobytes():
            return False
    return True


def score(task: Task, outputs: Mapping[str, Array]) -> float | None:
    """The largest softmax probability of the least certain row, 0 to 1; None where the task has no scores or no rows.

    Args:
        task: Task of the model; names the output with the scores.
        outputs: Outputs by logical name; the scores are (N, classes).
    """
    if task.kind != "classification" or task.output not in outputs or task.scores not in ("probabilities", "logits"):
        return None
    values = outputs[task.output].astype(np.float64)
    if values.size == 0 or values.ndim == 0:
        return None
    if task.scores == "logits":
        with np.errstate(over="ignore", invalid="ignore"):
            shifted = np.exp(values - values.max(axis=-1, keepdims=True))
            values = shifted / shifted.sum(axis=-1, keepdims=True)
    least = float(values.max(axis=-1).min())
    return min(max(least, 0.0), 1.0) if np.isfinite(least) else 0.0


# --- the circuit breaker of the cloud tier

FAILURES_TO_OPEN = 3
FIRST_COOL_DOWN_SECONDS = 1.0
LONGEST_COOL_DOWN_SECONDS = 30.0


class BreakerState(str, enum.Enum):
    """CLOSED lets calls through, OPEN does not, HALF_OPEN waits for the result of one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker(msgspec.Struct, frozen=True):
    """Circuit breaker: opens after FAILURES_TO_OPEN failures in a row, then allows one probe after each cool-down.

    A refused connection counts as one failure, like any other failure: it costs no time, and the breaker stays closed
    for a cloud tier that restarts within two requests. The cool-down doubles with every failed probe, up to
    LONGEST_COOL_DOWN_SECONDS.

    Attributes:
        state: Present state.
        failures: Failures in a row.
        cool_down_seconds: The last cool-down; 0 while closed.
        opens_at: Monotonic seconds from which the next probe is allowed.
    """

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    cool_down_seconds: float = 0.0
    opens_at: float = 0.0

    def admit(self, now: float) -> tuple[Breaker, bool]:
        """The next breaker, and whether a call is allowed now.

        An allowed call must end in `succeeded`, `failed` or `abandoned`.
        """
        if self.state is BreakerState.CLOSED:
            return self, True
        if self.state is BreakerState.OPEN and now >= self.opens_at:
            return msgspec.structs.replace(self, state=BreakerState.HALF_OPEN), True
        return self, False

    def succeeded(self) -> Breaker:
        """A call was answered."""
        return Breaker()

    def failed(self, now: float, spread: float) -> Breaker:
        """A call failed.

        Args:
            now: Monotonic seconds.
            spread: Random number, 0 to 1; shortens the cool-down by up to half, so that devices do not retry together.
        """
        failures = self.failures + 1
        if self.state is BreakerState.CLOSED and failures < FAILURES_TO_OPEN:
            return msgspec.structs.replace(self, failures=failures)
        if self.state is BreakerState.OPEN:
            return msgspec.structs.replace(self, failures=failures)  # the call began before the breaker opened
        cool_down = min(max(self.cool_down_seconds * 2, FIRST_COOL_DOWN_SECONDS), LONGEST_COOL_DOWN_SECONDS)
        return Breaker(BreakerState.OPEN, failures, cool_down, now + cool_down * (1 - spread / 2))

    def abandoned(self, now: float) -> Breaker:
        """The caller gave up before the call ended; this is no failure of the cloud tier."""
        if self.state is BreakerState.HALF_OPEN:
            return msgspec.structs.replace(self, state=BreakerState.OPEN, opens_at=now)
        return self
