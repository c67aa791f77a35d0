"""Calls the cloud tier: limits concurrent calls, applies the circuit breaker, checks the answer against the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from device_agents.inference.routing_rules import Breaker, CloudRefusedError, Reason
from edgekit.errors import CloudError
from edgekit.protocols import Clock, CloudTier
from edgekit.tensors import Array, TensorSpec

MAX_CLOUD_CALLS = 8  # at one time


class FallbackError(CloudError):
    """The cloud tier gave no usable answer.

    Args:
        reason: Value for ``edgekit_reason``.
        message: For people.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Fallback:
    """Calls the cloud tier while the circuit breaker allows it.

    Args:
        cloud: Client of the cloud tier.
        clock: Time for the breaker and deadlines.
        timeout_seconds: Longest wait for one answer.
        spread: Gives random numbers from 0 to 1 for the breaker.
    """

    def __init__(self, cloud: CloudTier, clock: Clock, timeout_seconds: float, spread: Callable[[], float]) -> None:
        self._cloud = cloud
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._spread = spread
        self._calls = 0
        self.breaker = Breaker()

    async def ask(
        self, model: str, inputs: Mapping[str, Array], *, left_seconds: float | None, expected: Sequence[TensorSpec]
    ) -> dict[str, Array]:
        """Call once.

        Args:
            model: Name on the device.
            inputs: Logical inputs.
            left_seconds: Time until the request's deadline; None for no deadline.
            expected: Outputs that the answer must have; empty where the device does not know them.

        Raises:
            FallbackError: there is no usable answer; the message says why.
        """
        if left_seconds is not None and left_seconds <= 0:
            raise FallbackError(Reason.DEADLINE, "the deadline passed before the cloud tier could be called")
        if self._calls >= MAX_CLOUD_CALLS:
            raise FallbackError(Reason.CLOUD_BUSY, f"{MAX_CLOUD_CALLS} requests wait for the cloud tier already")
        started = self._clock.monotonic()
        self.breaker, allowed = self.breaker.admit(started)
        if not allowed:
            message = f"the cloud tier failed {self.breaker.failures} times in a row and is not called at present"
            raise FallbackError(Reason.BREAKER_OPEN, message)
        timeout = self._timeout_seconds if left_seconds is None else min(self._timeout_seconds, left_seconds)
        with self._calling() as ended:
            try:
                outputs = await self._cloud.infer(model, inputs, timeout_seconds=timeout)
            except CloudRefusedError as error:
                ended()
                self.breaker = self.breaker.succeeded()  # the tier works; it refused this request
                raise FallbackError(Reason.CLOUD_FAILED, str(error)) from error
            except CloudError as error:
                ended()
                raise self._failed(error, started, left_seconds) from error
            ended()
        self.breaker = self.breaker.succeeded()
        return _checked(outputs, expected)

    @contextlib.contextmanager
    def _calling(self) -> Iterator[Callable[[], object]]:
        """Count one call; a call that does not report its end (it was cancelled) is abandoned."""
        self._calls += 1
        with contextlib.ExitStack() as stack:
            stack.callback(self._abandon)
            try:
                yield stack.pop_all
            finally:
                self._calls -= 1

    def _abandon(self) -> None:
        self.breaker = self.breaker.abandoned(self._clock.monotonic())

    def _failed(self, error: CloudError, started: float, left_seconds: float | None) -> FallbackError:
        now = self._clock.monotonic()
        if left_seconds is not None and left_seconds < self._timeout_seconds and now - started >= left_seconds:
            self.breaker = self.breaker.abandoned(now)  # the deadline was short; this is no failure of the cloud tier
            return FallbackError(Reason.DEADLINE, str(error))
        self.breaker = self.breaker.failed(now, self._spread())
        return FallbackError(Reason.CLOUD_FAILED, str(error))


def _checked(outputs: Mapping[str, Array], expected: Sequence[TensorSpec]) -> dict[str, Array]:
    faults = [f"output {spec.name!r} is missing" for spec in expected if spec.name not in outputs]
    faults += [fault for spec in expected if spec.name in outputs for fault in spec.faults(outputs[spec.name])]
    if faults:
        raise FallbackError(
            Reason.CLOUD_FAILED, "the cloud tier's model answers differently from the device's: " + "; ".join(faults)
        )
    return {spec.name: outputs[spec.name] for spec in expected} if expected else dict(outputs)
