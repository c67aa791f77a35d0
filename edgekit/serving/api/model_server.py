"""The interface behind HTTP and gRPC. The agent's inference service and the cloud tier implement it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from edgekit.serving.api.description import ModelDescription
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.statistics import Statistics


class ModelServer(Protocol):
    """A server of models, seen by HTTP and gRPC."""

    def models(self) -> Sequence[str]:
        """Names of all models of this server."""
        ...

    def ready(self) -> bool:
        """True while every model of this server can answer."""
        ...

    def describe(self, model: str, version: str | None) -> ModelDescription:
        """Describe a model that can answer.

        Raises:
            NotFoundError: there is no such model or version.
            UnavailableError: the model cannot answer yet.
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
        """Statistics of a loaded model. Raises as `describe`."""
        ...

    def counters(self) -> Mapping[str, Mapping[str, float]]:
        """Rising counters by model, then by short name; `edgekit.serving.http.metrics` lists them."""
        ...


@runtime_checkable
class TakesOutcomes(Protocol):
    """A server whose applications say whether an answer was good."""

    def outcome(self, model: str, request: str, *, good: bool) -> None:
        """Count the application's judgement of the answer to a request.

        Args:
            model: Name of the model.
            request: The id of the request.
            good: The answer was good.

        Raises:
            NotFoundError: there is no such answer, or it is too old.
            ConflictError: it was judged before.
        """
        ...


@runtime_checkable
class TakesConsent(Protocol):
    """A server that passes a user's answer to an update on to the agent."""

    async def consent(self, model: str, *, agreed: bool) -> str:
        """Take the answer to the update of a model that asks for an agreement.

        Returns:
            The version of the update.

        Raises:
            NotFoundError: no update of the model asks for one.
        """
        ...
