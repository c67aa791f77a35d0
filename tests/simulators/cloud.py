"""CloudTier in memory that answers, fails or waits, as the test sets it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import numpy as np

from device_agents.inference.cloud.failures import CloudTimeoutError
from edgekit.errors import CloudError
from edgekit.protocols import CloudAnswer
from edgekit.tensors import Array


class MemoryCloud:
    """Waits until `gate` is set, then raises `fault` if there is one, else returns `outputs`.

    Attributes:
        arrivals: Released once for each call.
        asked: Model, inputs and time-out of each call.
        postprocess: What each call said of the steps after the model.
    """

    def __init__(self, outputs: Mapping[str, Array]) -> None:
        self.outputs = dict(outputs)
        self.version = self.digest = ""
        self.fault: CloudError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrivals = asyncio.Semaphore(0)
        self.asked: list[tuple[str, dict[str, Array], float]] = []
        self.postprocess: list[bool | None] = []

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        timeout_seconds: float,
        wanted: Collection[str] | None = None,
        postprocess: bool | None = None,
    ) -> CloudAnswer:
        self.postprocess.append(postprocess)
        self.asked.append((model, dict(inputs), timeout_seconds))
        self.arrivals.release()
        try:
            await asyncio.wait_for(self.gate.wait(), timeout_seconds)
        except asyncio.TimeoutError:
            raise CloudTimeoutError("too late") from None
        if self.fault:
            raise self.fault
        return CloudAnswer(dict(self.outputs), self.version, self.digest)


CLOUD_OUTPUTS = {"scores": np.array([[0.0, 0.0, 1.0]], np.float32), "tag": np.array([[99.0]], np.float32)}
