"""One inference request while it is served: its parameters, the session that answers it, and the response."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from device_agents.inference import routing_rules, row_splitting
from device_agents.inference.cascade.certified import Held
from device_agents.inference.cloud.answer_rules import Expected
from device_agents.inference.options import ORIGINAL
from device_agents.inference.routing_rules import Decision, Reason, Route
from edgekit.errors import DataError
from edgekit.protocols import CloudAnswer
from edgekit.serving.models.options import CloudInputs
from edgekit.serving.oip.codec import InferResponse
from edgekit.serving.oip.deadlines import DEADLINE_PARAMETER, deadline_ms
from edgekit.serving.oip.parameters import ROUTE_PARAMETER, has_own
from edgekit.serving.session.preparation import POSTPROCESS_PARAMETER, Prepared
from edgekit.serving.session.sequence import Sequence
from edgekit.serving.session.session import Session
from edgekit.tensors import Array

_TEXT: dict[Route | Reason, str] = {one: one.value for one in (*Route, *Reason)}  # Enum.value is slow per request
_PARAMETERS = (ROUTE_PARAMETER, DEADLINE_PARAMETER, POSTPROCESS_PARAMETER)


class Outgoing(NamedTuple):
    """Inputs in the form in which they would be sent to the cloud tier.

    Attributes:
        inputs: By name.
        postprocess: Whether the tier does the steps after its model; None leaves that to the tier.
        original: True for bytes as the client sent them, which this device has decoded for its own model.
    """

    inputs: Mapping[str, Array]
    postprocess: bool | None = None
    original: bool = False


class Request:
    """One request while it is served.

    Attributes:
        model, version: Model name and version that the client named; version None for the active one.
        sent: The inputs as the client sent them.
        route: ``auto``, ``local-only`` or ``cloud-only``.
        deadline: Monotonic seconds; None for no deadline.
        patience: Seconds from its arrival to its deadline; None for no deadline.
        wanted: Outputs that the client needs, as the model names them; empty for all.
        counters: Counters of the model.
        postprocess: Whether the client wants the bundle's postprocessing; None where it did not say.
        place: The stream that the client named; None for a request of its own.
        session: Session of the bundle that was active on arrival, later of the bundle that answered.
        inputs: The logical inputs for `session`.
        usable: False when the local answer holds NaN.
        local: Outputs of the local model, whatever the client gets; None where it did not answer.
        prepared: The decoded inputs; None where the inputs need no preprocessing.
        certificate: Id of the certificate that holds for the answer; None for none.
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
        place: Sequence | None = None,
        *,
        patience: float | None = None,
        wanted: Collection[str] = (),
    ) -> None:
        self.model, self.sent, self.route, self.version = model, sent, route, version
        self.deadline, self.counters, self.postprocess = deadline, counters, postprocess
        self.inputs, self.place = sent, place
        self.session = session
        self.patience, self.wanted = patience, wanted
        self.usable = True
        self.local: Mapping[str, Array] | None = None
        self.prepared: Prepared | None = None
        self.certificate: str | None = None

    def certify(self, held: Held) -> None:
        """Let the response carry the certificate, if it holds now."""
        self.certificate = held.certificate.id if held.claimed else None

    @property
    def stateful(self) -> bool:
        """True where the answer depends on a stream's state, which only this device has.

        A request that names a stream may be one of a model that has no local bundle yet.
        """
        return self.place is not None if self.session is None else self.session.streams is not None

    def outgoing(self, cloud_inputs: CloudInputs) -> Outgoing:
        """The inputs for the cloud tier, in the form that the settings say; `release` decides whether they may leave.

        Original bytes go without the steps after the tier's model: its answer must be comparable with the local one,
        and this device does its own steps.
        """
        if self.session is None:
            return Outgoing(self.sent, self.postprocess)
        if cloud_inputs == ORIGINAL and self.inputs is not self.sent:
            return Outgoing(self.sent, postprocess=False, original=True)
        return Outgoing(self.inputs)

    def part(self, outgoing: Outgoing, local: Mapping[str, Array], rows: Array) -> tuple[Outgoing, Expected]:
        """The rows where `rows` (N,) is true: as they are sent, and the device's knowledge of the answer to them."""
        assert self.session is not None  # it answered
        specs = self.session.inputs
        decoded = row_splitting.take(specs, self.inputs, rows)
        if outgoing.original:  # bytes have their rows along the first axis, whatever the input's batch axis is
            same = [spec for spec in specs if outgoing.inputs.get(spec.name) is self.inputs.get(spec.name)]
            outgoing = outgoing._replace(inputs=row_splitting.take(same, outgoing.inputs, rows))
        else:
            outgoing = outgoing._replace(inputs=decoded)
        own = row_splitting.take(self.session.outputs, local, rows)
        return outgoing, self.expected._replace(sent=decoded, local=own)

    def may_split(self, outputs: Mapping[str, Array], rows: int) -> bool:
        """True where each of the rows can take a route of its own; `outputs` are the local model's."""
        session = self.session
        return session is not None and row_splitting.may_split(
            session.inputs, session.outputs, self.inputs, outputs, rows
        )

    def take(self, prepared: Prepared) -> None:
        """Use the inputs of `prepared`, and the session that they were prepared for."""
        self.prepared = prepared
        self.session, self.inputs = prepared.session, prepared.inputs

    @property
    def expected(self) -> Expected:
        """The device's knowledge of an answer of the cloud tier; without its own answer."""
        if self.session is None:
            return Expected(sent=self.inputs, wanted=self.wanted)
        session = self.session
        return Expected(session.outputs, session.inputs, self.inputs, session.manifest.task, wanted=self.wanted)

    def respond(self, outputs: dict[str, Array], decision: Decision, score: float | None = None) -> InferResponse:
        """The response from the local model, with the reason in its parameters."""
        parameters = self._why(decision, score)
        version = ""
        if self.session is not None:
            version = self.session.manifest.version
            parameters["edgekit_model"] = self.session.digest
            parameters["edgekit_version"] = version
        return InferResponse(self.model, version, outputs, parameters)

    def respond_from_cloud(
        self, answer: CloudAnswer, decision: Decision, score: float | None = None, *, rows: int | None = None
    ) -> InferResponse:
        """The response from the cloud tier, with the version and digest that answered, where the tier states them.

        `rows` is the number of rows that the tier answered, where the device answered others; None for all.
        """
        parameters = self._why(decision, score)
        if answer.digest:
            parameters["edgekit_model"] = answer.digest
        if answer.version:
            parameters["edgekit_version"] = answer.version
        if answer.endpoint:
            parameters["edgekit_cloud_endpoint"] = answer.endpoint
        if rows is not None:
            parameters["edgekit_cloud_rows"] = rows
        if self.session is not None:
            parameters["edgekit_local_model"] = self.session.digest
        return InferResponse(self.model, answer.version, answer.outputs, parameters)

    def _why(self, decision: Decision, score: float | None) -> dict[str, Any]:
        parameters: dict[str, Any] = {"edgekit_route": _TEXT[decision.route], "edgekit_reason": _TEXT[decision.reason]}
        if score is not None:
            parameters["edgekit_score"] = score
        if self.certificate is not None:
            parameters["edgekit_certificate"] = self.certificate
        return parameters


def stateful_error(request: Request) -> DataError:
    """The error of a cloud-only request of a model with state."""
    return DataError(
        f"{request.route} was asked for model {request.model!r}, which keeps the state of each stream on this device; "
        "it is never sent to the cloud",
        advice=f"Send edgekit_route {routing_rules.AUTO} or {routing_rules.LOCAL_ONLY}, or leave it out.",
    )


def no_route_message(request: Request, reason: Reason) -> str:
    """Why no route may answer the request, for people."""
    if request.stateful and request.session is None:
        return f"model {request.model!r} has no local bundle yet, and a request of a stream is answered locally only"
    if reason is Reason.PRIVATE:
        return f"{request.route} was asked for model {request.model!r}, whose inputs may not leave this device"
    if reason is Reason.NO_CLOUD:
        return f"{request.route} was asked for model {request.model!r}, and no cloud tier is configured"
    return f"{request.route} was asked for model {request.model!r}, which has no local bundle"


def parse_parameters(parameters: Mapping[str, Any]) -> tuple[str, float | None]:
    """Route and deadline (milliseconds) of a protocol request; only parameters named ``edgekit_*`` are read.

    Raises:
        DataError: such a parameter is unknown, or the deadline is not valid.
    """
    if not has_own(parameters, _PARAMETERS):
        return routing_rules.AUTO, None
    route = parameters.get(ROUTE_PARAMETER, routing_rules.AUTO)
    return route, deadline_ms(parameters)
