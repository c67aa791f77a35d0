"""ModelServer in memory that returns its inputs."""

from __future__ import annotations

import asyncio

from edgekit.serving.api.description import ModelDescription
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.statistics import Statistics


class Echo:
    """Returns the inputs of each request once `gate` is set.

    Attributes:
        asked: Set once a request has arrived.
        requests: Number of requests so far.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self._arrivals = asyncio.Condition()
        self.requests = 0

    async def arrived(self, count: int) -> None:
        """Wait until `count` requests have arrived."""
        async with self._arrivals:
            await asyncio.wait_for(self._arrivals.wait_for(lambda: self.requests >= count), 10)

    def models(self) -> list[str]:
        return ["m"]

    def ready(self) -> bool:
        return True

    def describe(self, model: str, version: str | None) -> ModelDescription:
        return ModelDescription(model, "1.0.0", "test_test", (), ())

    async def answer(self, model: str, version: str | None, request: oip.InferRequest) -> oip.InferResponse:
        async with self._arrivals:
            self.requests += 1
            self._arrivals.notify_all()
        self.asked.set()
        await self.gate.wait()
        return oip.InferResponse(model, "1.0.0", dict(request.inputs))

    def statistics(self, model: str, version: str | None) -> Statistics:
        return Statistics()

    def counters(self) -> dict[str, dict[str, float]]:
        return {}
