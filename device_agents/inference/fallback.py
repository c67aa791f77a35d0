"""The way to the cloud tier: one breaker, a bound on calls at a time, and an answer that fits or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from device_agents.inference.routing_rules import Breaker, CloudRefusedError, Reason
from edgekit.errors import CloudError
from edgekit.protocols import Clock, CloudTier
from edgekit.tensors import Array, TensorSpec

CALLS = 8


class FallbackError(CloudError):
    """The cloud tier gave no answer.

    Args:
        reason: For ``edgekit_reason``.
        message: For people.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Fallback:
    """Asks a cloud tier while it is worth asking.

    Args:
        cloud: The tier.
        clock: Time for the breaker and deadlines.
        timeout_seconds: Longest wait for one answer.
        spread: Random numbers from 0 to 1 for the breaker.
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
        """Ask once.

        Args:
            model: Name on the device.
            inputs: Logical inputs.
            left_seconds: Until the request's deadline; None for none.
            expected: Outputs that the answer must have; empty where the device does not know them.

        Raises:
            FallbackError: no answer; says why.
        """
        if left_seconds is not None and left_seconds <= 0:
            raise FallbackError(Reason.DEADLINE, "the deadline passed before the cloud tier could be asked")
        if self._calls >= CALLS:
            raise FallbackError(Reason.CLOUD_BUSY, f"{CALLS} requests wait for the cloud tier already")
        started = self._clock.monotonic()
        self.breaker, allowed = self.breaker.asked(started)
        if not allowed:
            message = f"the cloud tier failed {self.breaker.failures} times in a row and is not asked at the moment"
            raise FallbackError(Reason.BREAKER_OPEN, message)
        self._calls += 1
        try:
            timeout = self._timeout_seconds if left_seconds is None else min(self._timeout_seconds, left_seconds)
            found = await self._cloud.infer(model, inputs, timeout_seconds=timeout)
        except CloudRefusedError as error:
            self.breaker = self.breaker.succeeded()  # it is there; it did not like this request
            raise FallbackError(Reason.CLOUD_FAILED, str(error)) from error
        except CloudError as error:
            raise self._failed(error, started, left_seconds) from error
        except BaseException:
            self.breaker = self.breaker.abandoned(self._clock.monotonic())
            raise
        finally:
            self._calls -= 1
        self.breaker = self.breaker.succeeded()
        return _fitting(found, expected)

    def _failed(self, error: CloudError, started: float, left_seconds: float | None) -> FallbackError:
        now = self._clock.monotonic()
        if left_seconds is not None and left_seconds < self._timeout_seconds and now - started >= left_seconds:
            self.breaker = self.breaker.abandoned(now)  # a short deadline says nothing about the cloud tier
            return FallbackError(Reason.DEADLINE, str(error))
        self.breaker = self.breaker.failed(now, self._spread())
        return FallbackError(Reason.CLOUD_FAILED, str(error))


def _fitting(found: Mapping[str, Array], expected: Sequence[TensorSpec]) -> dict[str, Array]:
    faults = [f"output {spec.name!r} is missing" for spec in expected if spec.name not in found]
    faults += [fault for spec in expected if spec.name in found for fault in spec.faults(found[spec.name])]
    if faults:
        raise FallbackError(
            Reason.CLOUD_FAILED, "the cloud tier's model answers differently from the device's: " + "; ".join(faults)
        )
    return {spec.name: found[spec.name] for spec in expected} if expected else dict(found)
