"""The interface that HTTP and gRPC serve: the agent's inference service and the cloud tier implement it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from edgekit.serving.api.description import ModelDescription
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.statistics import Statistics


class ModelServer(Protocol):
    """What the application serves."""

    def models(self) -> Sequence[str]:
        """Names of all models that it knows."""
        ...

    def ready(self) -> bool:
        """True while every model that it knows can answer."""
        ...

    def describe(self, model: str, version: str | None) -> ModelDescription:
        """Describe a model that can answer.

        Raises:
            NotFoundError: there is no such model or version.
            UnavailableError: it cannot answer yet.
        """
        ...

    async def answer(self, model: str, version: str | None, request: oip.InferRequest) -> oip.InferResponse:
        """Answer one request.

        Raises:
            NotFoundError, UnavailableError: as `describe`.
            OverloadedError: too many requests wait.
            DataError: the request does not fit the model.
        """
        ...

    def statistics(self, model: str, version: str | None) -> Statistics:
        """What the loaded model has done; raises as `describe`."""
        ...

    def counters(self) -> Mapping[str, Mapping[str, float]]:
        """Rising counters by model, then by name."""
        ...
