"""One inference request on its way through the service: what it says, who answers it, and the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_agents.inference import routing_rules
from device_agents.inference.routing_rules import Decision, Place, Reason
from edgekit.errors import DataError
from edgekit.serving.oip.codec import InferResponse
from edgekit.serving.session.preparation import PARAMETER as POSTPROCESS
from edgekit.serving.session.preparation import Prepared
from edgekit.serving.session.session import Session
from edgekit.tensors import Array

_TOLD: dict[Place | Reason, str] = {one: one.value for one in (*Place, *Reason)}  # `value` is a call, for each request
_PARAMETERS = ("edgekit_route", "edgekit_deadline_ms", POSTPROCESS)


class Request:
    """One request on its way.

    Attributes:
        sent: The inputs as the client sent them.
        deadline: Monotonic seconds.
        session: Of the active bundle when it came, then of the one that answered.
        inputs: The logical inputs for it.
        usable: The local answer holds no NaN.
        prepared: What its bytes were made into; None where it is answered as it was sent.
    """

    def __init__(
        self,
        model: str,
        sent: Mapping[str, Array],
        session: Session | None,
        route: str,
        version: str | None,
        deadline: float | None,
        counters: dict[str, int],
        postprocess: bool | None,
    ) -> None:
        self.model, self.sent, self.route, self.version = model, sent, route, version
        self.deadline, self.counters, self.postprocess = deadline, counters, postprocess
        self.inputs = sent
        self.session = session
        self.usable = True
        self.prepared: Prepared | None = None

    def take(self, prepared: Prepared) -> None:
        """Note `prepared`, and for which bundle it is."""
        self.prepared = prepared
        self.session, self.inputs = prepared.session, prepared.inputs

    def respond(self, outputs: dict[str, Array], decision: Decision, score: float | None = None) -> InferResponse:
        """The answer, with where it came from and why."""
        parameters: dict[str, Any] = {
            "edgekit_route": _TOLD[decision.place],
            "edgekit_reason": _TOLD[decision.reason],
        }
        if score is not None:
            parameters["edgekit_score"] = score
        version = ""
        if self.session is not None:
            version = self.session.manifest.version
            parameters["edgekit_model"] = self.session.digest
            parameters["edgekit_version"] = version
        return InferResponse(self.model, version, outputs, parameters)


def nowhere(request: Request, reason: Reason) -> str:
    """Why no place may answer."""
    if reason is Reason.NO_CLOUD:
        return f"{request.route} was asked for model {request.model!r}, and no cloud tier is configured"
    return f"{request.route} was asked for model {request.model!r}, which has no local bundle"


def parse_parameters(parameters: Mapping[str, Any]) -> tuple[str, float | None]:
    """Route and deadline of a protocol request; parameters of others are not looked at.

    Raises:
        DataError: one of ours is unknown or of the wrong type.
    """
    ours = [name for name in parameters if name.startswith("edgekit_")]
    if not ours:
        return routing_rules.AUTO, None
    unknown = [name for name in ours if name not in _PARAMETERS]
    if unknown:
        raise DataError(f"parameter {unknown[0]!r} is unknown, expected {' or '.join(_PARAMETERS)}")
    route = parameters.get("edgekit_route", routing_rules.AUTO)
    deadline = parameters.get("edgekit_deadline_ms")
    if deadline is not None and (not isinstance(deadline, int | float) or isinstance(deadline, bool)):
        raise DataError(f"edgekit_deadline_ms is {deadline!r}, expected a number above 0")
    return route, deadline
