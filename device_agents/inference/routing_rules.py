"""Where an answer comes from: the device, the cloud tier, or the device for want of the cloud tier.

Reasons are asked in this order: what the request says, no local model, an overloaded or failing one, a low score.
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
    """The cloud tier is there and did not take this request; asking it about others may still help."""


class Place(str, enum.Enum):
    """Where to ask; the values are those of ``edgekit_route``."""

    LOCAL = "local"
    CLOUD = "cloud"
    DEGRADED = "degraded"  # the local answer, because the cloud tier was wanted and did not give one
    NOWHERE = "nowhere"  # the request allows no place that there is


class Reason(str, enum.Enum):
    """Why, as ``edgekit_reason`` tells it."""

    REQUESTED = "requested"
    NO_LOCAL_MODEL = "no-local-model"
    OVERLOADED = "overloaded"
    LOCAL_ERROR = "local-error"
    LOW_SCORE = "low-score"
    CONFIDENT = "confident"
    NO_SCORE = "no-score"  # the task has none, so nothing speaks against the local answer
    NO_CLOUD = "no-cloud"  # none is configured
    BREAKER_OPEN = "breaker-open"
    CLOUD_BUSY = "cloud-busy"
    CLOUD_FAILED = "cloud-failed"
    DEADLINE = "deadline"


class Decision(msgspec.Struct, frozen=True):
    """A place and why."""

    place: Place
    reason: Reason


_HERE = Decision(Place.LOCAL, Reason.REQUESTED)
_SCORELESS = Decision(Place.LOCAL, Reason.NO_SCORE)
_CONFIDENT = Decision(Place.LOCAL, Reason.CONFIDENT)


def before_running(route: str, *, has_local: bool, has_cloud: bool) -> Decision:
    """Where to ask first, before anything has run. `route` is one of ROUTES."""
    if route == CLOUD_ONLY:
        return Decision(Place.CLOUD, Reason.REQUESTED) if has_cloud else Decision(Place.NOWHERE, Reason.NO_CLOUD)
    if has_local:
        return _HERE
    if route == AUTO and has_cloud:
        return Decision(Place.CLOUD, Reason.NO_LOCAL_MODEL)
    return Decision(Place.NOWHERE, Reason.NO_LOCAL_MODEL)


def after_running(
    route: str, *, score: float | None, threshold: float, has_cloud: bool, usable: bool = True
) -> Decision:
    """Whether the local answer is good enough.

    Args:
        route: ``auto`` or ``local-only``.
        score: Of the answer, 0 to 1; None where the task has none.
        threshold: Scores below it go to the cloud.
        has_cloud: A cloud tier is configured.
        usable: False for an answer that holds NaN.
    """
    if route == LOCAL_ONLY:
        return _HERE
    if not usable:
        return Decision(Place.CLOUD if has_cloud else Place.DEGRADED, Reason.LOCAL_ERROR)
    if score is None:
        return _SCORELESS
    if score >= threshold:
        return _CONFIDENT
    return Decision(Place.CLOUD, Reason.LOW_SCORE) if has_cloud else Decision(Place.LOCAL, Reason.NO_CLOUD)


def usable(outputs: Mapping[str, Array]) -> bool:
    """False when an output holds NaN."""
    for value in outputs.values():  # noqa: SIM110 - twice as fast as all(), as the bytes are as any(), for each request
        if value.dtype.kind == "f" and 1 in np.isnan(value).tobytes():
            return False
    return True


def score(task: Task, outputs: Mapping[str, Array]) -> float | None:
    """The largest softmax probability of the least sure row, 0 to 1; None where the task has no scores or no rows.

    Args:
        task: What the outputs mean.
        outputs: By logical name; the scores are (N, classes).
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


# --- when to stop asking the cloud tier

FAILURES_TO_OPEN = 3
FIRST_COOL_DOWN_SECONDS = 1.0
LONGEST_COOL_DOWN_SECONDS = 30.0


class BreakerState(str, enum.Enum):
    """CLOSED asks, OPEN does not, HALF_OPEN has one probe on its way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker(msgspec.Struct, frozen=True):
    """Opens after FAILURES_TO_OPEN failures in a row, whatever their kind; then one probe after each cool-down.

    A refused connection counts as one failure like any other: it costs no time, and a cloud tier that restarts within
    two requests is never given up. The cool-down doubles with every failed probe up to LONGEST_COOL_DOWN_SECONDS.

    Attributes:
        state: Where it stands.
        failures: In a row.
        cool_down_seconds: The last one; 0 while closed.
        opens_at: Monotonic seconds at which the next probe may go.
    """

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    cool_down_seconds: float = 0.0
    opens_at: float = 0.0

    def asked(self, now: float) -> tuple[Breaker, bool]:
        """Whether a call may be made now; one that may must end in `succeeded`, `failed` or `abandoned`."""
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
            spread: Random, 0 to 1: shortens the cool-down by up to half, so that devices do not come back in step.
        """
        failures = self.failures + 1
        if self.state is BreakerState.CLOSED and failures < FAILURES_TO_OPEN:
            return msgspec.structs.replace(self, failures=failures)
        if self.state is BreakerState.OPEN:
            return msgspec.structs.replace(self, failures=failures)  # a call that had begun before it opened
        cool_down = min(max(self.cool_down_seconds * 2, FIRST_COOL_DOWN_SECONDS), LONGEST_COOL_DOWN_SECONDS)
        return Breaker(BreakerState.OPEN, failures, cool_down, now + cool_down * (1 - spread / 2))

    def abandoned(self, now: float) -> Breaker:
        """The caller gave up before the call ended, which says nothing about the cloud tier."""
        if self.state is BreakerState.HALF_OPEN:
            return msgspec.structs.replace(self, state=BreakerState.OPEN, opens_at=now)
        return self
