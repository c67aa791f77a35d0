"""Why the cloud tier gave no usable answer: one error class for each kind of failure. Pure: no I/O, no clock."""

from __future__ import annotations

import enum

from device_agents.inference.routing_rules import Reason
from edgekit.errors import CloudError


class Failure(str, enum.Enum):
    """Kind of a failure; the label ``reason`` of ``edgekit_model_cloud_failures_total`` holds the value."""

    FAILED = "failed"  # the server answered with an error of its own (5xx)
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    OVERLOADED = "overloaded"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not-found"
    REFUSED = "refused"
    BYTES_REFUSED = "bytes-refused"  # it refused a request that carried the original bytes
    WRONG_INTERFACE = "wrong-interface"  # other names, dtypes or shapes than the device's model has
    UNUSABLE = "unusable-answer"  # not the protocol, or values that cannot be right
    RETRY_BUDGET = "retry-budget"  # a further endpoint was not tried after a failure
    BREAKER_OPEN = "breaker-open"  # this and the following: the cloud tier was not called
    BUSY = "busy"
    DEADLINE = "deadline"
    OFFLINE = "offline"
    UNENCRYPTED = "unencrypted"
    METERED = "metered"
    BUDGET_SPENT = "budget-spent"
    BUDGET_PACE = "budget-pace"
    STREAM_PAUSE = "stream-pause"
    NO_CLOUD = "no-cloud"


class CloudTimeoutError(CloudError):
    """No answer came in time."""


class CloudUnreachableError(CloudError):
    """No connection, or one that ended before the answer."""


class CloudOverloadedError(CloudError):
    """The cloud tier has too much to do at present (429, 503).

    Args:
        message: For people.
        retry_after_seconds: When to try again, as the tier says; None where it does not.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class CloudRefusedError(CloudError):
    """The cloud tier answered that it does not accept this request (4xx).

    Args:
        message: For people.
        status: HTTP status.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class CloudInterfaceError(CloudError):
    """The cloud tier's model has another interface than the device's."""


class CloudUnusableError(CloudError):
    """The answer does not follow the protocol, or its values cannot be right."""


class FallbackError(CloudError):
    """The cloud tier gave no usable answer.

    Args:
        reason: Value for ``edgekit_reason``.
        message: For people.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


_KINDS = {
    CloudTimeoutError: Failure.TIMEOUT,
    CloudUnreachableError: Failure.UNREACHABLE,
    CloudOverloadedError: Failure.OVERLOADED,
    CloudInterfaceError: Failure.WRONG_INTERFACE,
    CloudUnusableError: Failure.UNUSABLE,
}
_STATUSES = {401: Failure.UNAUTHORIZED, 403: Failure.UNAUTHORIZED, 404: Failure.NOT_FOUND}


def failure_of(error: CloudError) -> Failure:
    """The kind of a failed call."""
    if isinstance(error, CloudRefusedError):
        return _STATUSES.get(error.status, Failure.REFUSED)
    return next((failure for kind, failure in _KINDS.items() if isinstance(error, kind)), Failure.FAILED)
