"""Rules that choose a request's route: the local model, the cloud tier, or local as a substitute for the cloud tier.

The reasons are checked in this order: a model with state, a model whose inputs may not leave the device, the request's
own route, no local model, a failing local model, a deadline that it cannot keep, an overloaded one, inputs out of
distribution, a low score, and exploration.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec
import numpy as np

from device_agents.inference.cascade.certified import Held
from edgekit.bundle.manifest import Task
from edgekit.bundle.scores import row_scores
from edgekit.certificate.scoring import score as certificate_score
from edgekit.errors import RuntimeLoadError
from edgekit.serving.session.queue import DeadlineError, OverloadedError
from edgekit.serving.worker.errors import WorkerRestartingError
from edgekit.tensors import Array

AUTO, LOCAL_ONLY, CLOUD_ONLY = "auto", "local-only", "cloud-only"
ROUTES = (AUTO, LOCAL_ONLY, CLOUD_ONLY)
# The time that postprocessing, encoding and the way back to the client may take.
RESERVE_SHARE, SHORTEST_RESERVE_SECONDS, LONGEST_RESERVE_SECONDS = 0.1, 0.02, 0.25


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
    OUT_OF_DISTRIBUTION = "out-of-distribution"  # inputs unlike the data of the conversion; the settings want this
    LOW_SCORE = "low-score"
    CONFIDENT = "confident"
    EXPLORATION = "exploration"  # confident, and sent to the cloud tier too, after the answer, to test the certificate
    NO_SCORE = "no-score"  # the task has no score, so the local answer is used
    NO_CLOUD = "no-cloud"  # no cloud tier is configured
    BREAKER_OPEN = "breaker-open"
    CLOUD_BUSY = "cloud-busy"
    CLOUD_FAILED = "cloud-failed"
    BYTES_REFUSED = "bytes-refused"  # the cloud tier's model does not take the original bytes
    DEADLINE = "deadline"  # too near for the local model (route cloud) or for the cloud tier (degraded)
    STATEFUL = "stateful"  # the model has state, which is on this device only
    PRIVATE = "private"  # the settings or the bundle say that inputs of this model never leave the device
    OFFLINE = "offline"  # the settings, or offline_file, keep this device from calling the cloud tier
    UNENCRYPTED = "unencrypted"  # the API key would travel over http:// to another host
    METERED = "metered"  # the link is metered, and the settings allow no calls over it
    BUDGET_SPENT = "budget-spent"  # the day's budget of calls or bytes has no room for this call
    BUDGET_PACE = "budget-pace"  # the day's budget is spent faster than the day passes; less sure answers go first
    STREAM_PAUSE = "stream-pause"  # the stream was sent a short time ago, and has a local answer now


class Decision(msgspec.Struct, frozen=True):
    """A route and the reason for it."""

    route: Route
    reason: Reason


_STATEFUL = Decision(Route.LOCAL, Reason.STATEFUL)
_LOCAL = Decision(Route.LOCAL, Reason.REQUESTED)
_NO_SCORE = Decision(Route.LOCAL, Reason.NO_SCORE)
_CONFIDENT = Decision(Route.LOCAL, Reason.CONFIDENT)


def before_running(
    route: str, *, has_local: bool, has_cloud: bool, stateful: bool = False, without: Reason = Reason.NO_CLOUD
) -> Decision:
    """The first route of a request, before a model has run. `route` is one of ROUTES.

    `without` is the reason why there is no cloud tier for this model, where `has_cloud` is False.

    A request of a stream (`stateful`) is never sent to the cloud tier, whatever the settings are: the stream's state
    is on this device, and the cloud tier would answer from another one.
    """
    if stateful:
        if route == CLOUD_ONLY:
            return Decision(Route.NONE, Reason.STATEFUL)
        return _STATEFUL if has_local else Decision(Route.NONE, Reason.NO_LOCAL_MODEL)
    if route == CLOUD_ONLY:
        return Decision(Route.CLOUD, Reason.REQUESTED) if has_cloud else Decision(Route.NONE, without)
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
    without: Reason = Reason.NO_CLOUD,
    sure: bool | None = None,
    outlying: bool = False,
) -> Decision:
    """The route after the local model has answered: local if that answer is good enough, else the cloud tier.

    Args:
        route: ``auto`` or ``local-only``.
        score: Score of the answer, 0 to 1; None where the task has no score.
        threshold: Answers with a lower score go to the cloud.
        has_cloud: True when a cloud tier is configured, and may get the inputs of this model.
        usable: False for an answer that holds NaN.
        stateful: True for a request of a model with state, which only this device answers.
        without: Reason why there is no cloud tier for this model, where `has_cloud` is False.
        sure: What a certificate says of the answer, instead of score and threshold; None without one.
        outlying: True where a row is out of distribution, and the settings send such rows.
    """
    if stateful:
        return _STATEFUL if usable or route == LOCAL_ONLY else Decision(Route.DEGRADED, Reason.LOCAL_ERROR)
    if route == LOCAL_ONLY:
        return _LOCAL
    if not usable:
        return Decision(Route.CLOUD if has_cloud else Route.DEGRADED, Reason.LOCAL_ERROR)
    if outlying and has_cloud:
        return Decision(Route.CLOUD, Reason.OUT_OF_DISTRIBUTION)
    if score is None:
        return _NO_SCORE
    if score >= threshold if sure is None else sure:
        return _CONFIDENT
    return Decision(Route.CLOUD, Reason.LOW_SCORE) if has_cloud else Decision(Route.LOCAL, without)


def without_local(error: OverloadedError | RuntimeLoadError) -> Reason:
    """Why the local model gave no answer. A worker that restarts is the model's own fault, and no overload."""
    if isinstance(error, DeadlineError):
        return Reason.DEADLINE
    if isinstance(error, OverloadedError) and not isinstance(error, WorkerRestartingError):
        return Reason.OVERLOADED
    return Reason.LOCAL_ERROR


def certified_scores(held: Held, outputs: Mapping[str, Array]) -> Array | None:
    """The scores (N,) of a certificate's function; None where the answer has not one row of scores a sample."""
    values = outputs.get(held.certificate.output)
    if values is None or values.ndim != 2 or not len(values) or values.shape[1] < 2:
        return None
    return certificate_score(held.certificate.score, values)


def certified_sure(
    held: Held | None, certified: Array | None, score: float | None, threshold: float, *, local_only: bool
) -> bool | None:
    """Whether an answer is good enough by its certificate: every row is at or above the certified threshold.

    After a refutation the answer must also reach the threshold of the settings; with `local_only` it is kept always.

    Args:
        held: The certificate; None without one.
        certified: Its scores (N,), from `certified_scores`; None where it does not apply.
        score, threshold: Score of the answer, and the threshold of the settings.
        local_only: The policy after a refutation.
    """
    if held is None or certified is None:
        return None
    if held.refuted and local_only:
        return True
    sure = bool((certified >= held.certificate.threshold).all())
    return sure and not (held.refuted and (score is None or score < threshold))


def reserve_seconds(patience: float | None) -> float:
    """How long before its deadline a request stops waiting for the cloud tier, because it has a local answer.

    Args:
        patience: Seconds from the request's arrival to its deadline; None for no deadline.
    """
    if patience is None:
        return 0.0
    return min(max(RESERVE_SHARE * patience, SHORTEST_RESERVE_SECONDS), LONGEST_RESERVE_SECONDS, patience / 2)


def score(task: Task, outputs: Mapping[str, Array]) -> float | None:
    """The score of the least certain row (`row_scores`), 0 to 1; None where the task has no scores or no rows.

    Args:
        task: Task of the model; names the output with the scores.
        outputs: Outputs by logical name; the scores are (N, classes).
    """
    scores = row_scores(task, outputs)
    if scores is None:
        return None
    least = float(scores.min())
    return min(max(least, 0.0), 1.0) if np.isfinite(least) else 0.0
