"""Sends a request to the local model, to the cloud tier, or to both, as `routing_rules` decides."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from device_agents.inference import routing_rules, row_splitting
from device_agents.inference.cascade.certificates import Certificates
from device_agents.inference.cascade.certified import Held
from device_agents.inference.cloud.failures import FallbackError
from device_agents.inference.exploring import Explorer, note_cloud
from device_agents.inference.options import LOCAL_ONLY, NEVER, CloudOptions
from device_agents.inference.request import Request, no_route_message, stateful_error
from device_agents.inference.routing_rules import Decision, Reason, Route
from device_agents.inference.watch.observation import TakesSamples, observation
from device_agents.inference.watch.outliers import OutlierGate
from device_agents.inference.watch.shadowing import Shadowing
from edgekit.certificate.document import REGRET
from edgekit.errors import CloudError, RuntimeLoadError, UnavailableError
from edgekit.protocols import Clock, CloudAnswer
from edgekit.runtimes.logical import check_inputs
from edgekit.serving.models.manager import ModelManager
from edgekit.serving.oip.codec import InferResponse
from edgekit.serving.session.session import DeadlineError, OverloadedError, Session
from edgekit.serving.worker.errors import WorkerRestartingError
from edgekit.tensors import Array, finite, usable

if TYPE_CHECKING:
    from device_agents.inference.fallback import Fallback


class InferenceRouter:
    """Runs a request on the route that the rules choose, and on the other route when the first one fails.

    Args:
        manager: The local models.
        fallback: The cloud tier; None for none.
        options: Gives a model's options for the cloud tier.
        clock: Time for deadlines.
        prepare_again: Prepares a request again, for the session of another bundle; called when the bundle was switched
            while the request waited.
        certificates: Certificates of the active bundles.
        explorer: Sends some confident answers to the cloud tier too; None without a cloud tier.
        shadowing: Compares other bundles with the local answers.
        outliers: Finds rows out of distribution, for models whose owner sends them.

    Attributes:
        taker: Takes the answers of local models whose inputs may leave the device; None for nobody.
    """

    def __init__(
        self,
        manager: ModelManager,
        fallback: Fallback | None,
        options: Callable[[str], CloudOptions],
        clock: Clock,
        prepare_again: Callable[[Request, Session], Awaitable[None]],
        certificates: Certificates,
        explorer: Explorer | None,
        shadowing: Shadowing,
        outliers: OutlierGate,
    ) -> None:
        self._manager, self._fallback = manager, fallback
        self._options, self._clock, self._prepare_again = options, clock, prepare_again
        self._certificates, self._explorer = certificates, explorer
        self._shadowing, self._outliers = shadowing, outliers
        self.taker: TakesSamples | None = None

    async def answer(self, request: Request) -> InferResponse:
        """Answer a prepared request; raises as `InferenceService.infer`."""
        options = self._options(request.model)
        has_cloud, without = self._cloud_of(request.model, options)
        has_local = request.session is not None
        first = routing_rules.before_running(
            request.route, has_local=has_local, has_cloud=has_cloud, stateful=request.stateful, without=without
        )
        if first.route is not Route.LOCAL:
            return await self._answer_from_cloud(request, first)
        try:
            outputs = await self._run(request)
        except (OverloadedError, RuntimeLoadError) as error:
            return await self._answer_without_local(request, error, has_cloud=has_cloud)
        assert request.session is not None  # it answered
        score = routing_rules.score(request.session.manifest.task, outputs)
        held = self._held(request, request.session, options)
        strange = await self._outlying_rows(request, request.session) if has_cloud else None
        certified = None if held is None or not held.applies else routing_rules.certified_scores(held, outputs)
        after = routing_rules.after_running(
            request.route,
            score=score,
            threshold=options.threshold,
            has_cloud=has_cloud,
            usable=request.usable,
            stateful=request.stateful,
            without=without,
            sure=routing_rules.certified_sure(
                held, certified, score, options.threshold, local_only=options.refuted_certificate == LOCAL_ONLY
            ),
            outlying=strange is not None and bool(strange.any()),
        )
        see = functools.partial(self._observe, request, options, outputs, held, certified, score)
        if after.route is not Route.CLOUD:
            if held is not None and certified is not None and after.reason is Reason.CONFIDENT and has_cloud:
                if _holds(held, strange) and (len(certified) == 1 or request.may_split(outputs, len(certified))):
                    request.certify(held)
                if self._explorer is not None and self._explorer.consider(request, held, certified, outputs, see):
                    return request.respond(outputs, Decision(Route.LOCAL, Reason.EXPLORATION), score)
            see(None, None)
            return request.respond(outputs, after, score)
        rows, unsure = None, {Reason.LOW_SCORE: score, Reason.OUT_OF_DISTRIBUTION: 0.0}.get(after.reason)
        if unsure is not None or not request.usable:
            rows = self._unsure_rows(request, held, certified, outputs, options.threshold, strange)
        try:
            answer = await self._ask_cloud(request, outputs, rows, unsure)
        except FallbackError as error:
            if held is not None:
                held.cloud_failed()
            see(None, None)
            return request.respond(outputs, Decision(Route.DEGRADED, error.reason), score)
        see(answer, rows)
        if held is not None:
            note_cloud(self._certificates, request.model, held, answer.digest, self._clock.monotonic())
            may_claim = after.reason is Reason.LOW_SCORE and _holds(held, strange)
            if may_claim and certified is not None and (rows is not None or len(certified) == 1):
                request.certify(held)
            if may_claim and certified is not None and rows is not None and self._explorer is not None:
                self._explorer.consider(request, held, certified, outputs)  # one of the rows that are kept
        return request.respond_from_cloud(answer, after, score, rows=None if rows is None else int(rows.sum()))

    def _observe(
        self,
        request: Request,
        options: CloudOptions,
        outputs: Mapping[str, Array],
        held: Held | None,
        certified: Array | None,
        score: float | None,
        answer: CloudAnswer | None,
        rows: Array | None,
    ) -> None:
        """Tell the taker of an answer; `answer` is the cloud tier's, to the rows where `rows` (N,) is true."""
        if self.taker is None or request.session is None or not self.taker.wants(request.model):
            return
        task = request.session.manifest.task
        seen = observation(
            request,
            options.send_inputs,
            outputs,
            unsure=row_splitting.unsure_rows(held, certified, task, outputs, options.threshold),
            score=score,
            cloud=None if answer is None else answer.outputs,
            cloud_rows=rows,
            cloud_model="" if answer is None else answer.digest,
        )
        if seen is not None:
            self.taker.take(seen)

    def _cloud_of(self, model: str, options: CloudOptions) -> tuple[bool, Reason]:
        """Whether the cloud tier may answer for the model, and why it may not where it may not."""
        is_served = self._fallback is not None and self._fallback.serves(model)
        return is_served and options.send_inputs != NEVER, Reason.PRIVATE if is_served else Reason.NO_CLOUD

    def _held(self, request: Request, session: Session, options: CloudOptions) -> Held | None:
        """The certificate that decides on the request; None for none."""
        held = None if options.own_threshold else self._certificates.of(request.model, session.digest)
        if held is not None and held.certificate.bound.original != request.outgoing(options.cloud_inputs).original:
            return None  # it was proven with inputs of the other form
        return held

    async def _outlying_rows(self, request: Request, session: Session) -> Array | None:
        """True for each row (N,) that is out of distribution; None where they are not judged."""
        if request.route != routing_rules.AUTO or request.stateful:
            return None
        if not self._outliers.watches(request.model, session.digest):
            return None
        return await self._outliers.rows(request.model, session, request.inputs)

    @staticmethod
    def _unsure_rows(
        request: Request,
        held: Held | None,
        certified: Array | None,
        outputs: Mapping[str, Array],
        threshold: float,
        strange: Array | None,
    ) -> Array | None:
        """The rows that need the cloud tier; None where the request is sent as a whole."""
        assert request.session is not None  # it answered
        session = request.session
        rows = row_splitting.unsure_rows(held, certified, session.manifest.task, outputs, threshold)
        unusable = None if request.usable else row_splitting.unusable_rows(session.outputs, outputs)
        if unusable is None and not request.usable:
            return None
        for further in (strange, unusable):
            if further is None:
                continue
            if rows is not None and len(rows) != len(further):
                return None
            rows = further if rows is None else rows | further
        if rows is None or len(rows) < 2 or not rows.any():
            return None
        return rows if request.may_split(outputs, len(rows)) else None

    async def _answer_from_cloud(self, request: Request, first: Decision) -> InferResponse:
        if first.reason is Reason.STATEFUL:
            raise stateful_error(request)
        if first.route is Route.NONE:
            raise UnavailableError(no_route_message(request, first.reason))
        if request.session is not None:
            check_inputs(request.session.inputs, request.inputs)
        return request.respond_from_cloud(await self._ask_cloud(request), first)

    async def _run(self, request: Request) -> dict[str, Array]:
        """Run the local model, and count for probation and telemetry how the run ended."""
        start, counters = self._clock.monotonic(), request.counters
        try:
            session = self._manager.present(request.model)
            if session is None or session is not request.session:
                session = await self._acquire(request)
            outputs = await session.run(request.inputs, deadline=request.deadline, place=request.place)
        except OverloadedError as error:
            if isinstance(error, WorkerRestartingError):  # the model's own fault, not overload
                counters["runs"] += 1
                counters["runtime_errors"] += 1
            else:
                counters["expired" if isinstance(error, DeadlineError) else "shed"] += 1
            raise
        except RuntimeLoadError:
            counters["runs"] += 1
            counters["runtime_errors"] += 1
            raise
        counters["runs"] += 1
        counters["run_us"] += int((self._clock.monotonic() - start) * 1e6)
        request.local, request.usable = outputs, usable(outputs)
        if not request.usable:
            counters["unusable"] += finite(request.inputs)
        self._shadowing.offer(request, outputs)
        return outputs

    async def _answer_without_local(
        self, request: Request, error: OverloadedError | RuntimeLoadError, *, has_cloud: bool
    ) -> InferResponse:
        """Ask the cloud tier after the local model failed with `error`; raise `error` when that fails too."""
        if request.route == routing_rules.LOCAL_ONLY or not has_cloud or request.stateful:
            raise error
        decision = Decision(Route.CLOUD, routing_rules.without_local(error))
        try:
            return request.respond_from_cloud(await self._ask_cloud(request), decision)
        except CloudError as cloud_error:
            raise error from cloud_error

    async def _ask_cloud(
        self,
        request: Request,
        local: Mapping[str, Array] | None = None,
        rows: Array | None = None,
        score: float | None = None,
    ) -> CloudAnswer:
        """Ask the cloud tier. With a local answer at hand, time is kept to return that one before the deadline.

        Only the rows where `rows` (N,) is true are sent, and the local answer has the others; None sends all. `score`
        is that of a local answer that can be kept.
        """
        assert self._fallback is not None
        left, expected = None, request.expected
        if request.deadline is not None:
            left = request.deadline - self._clock.monotonic()
        if local is not None:
            expected = expected._replace(local=local)
            left = None if left is None else left - routing_rules.reserve_seconds(request.patience)
        outgoing = request.outgoing(self._options(request.model).cloud_inputs)
        if rows is not None and local is not None and request.session is not None:
            outgoing, expected = request.part(outgoing, local, rows)
        try:
            stream = None if request.place is None else request.place.id
            answer = await self._fallback.ask(
                request.model, outgoing, left_seconds=left, expected=expected, score=score, stream=stream
            )
        except CloudError:
            request.counters["cloud_errors"] += 1
            raise
        if rows is None or local is None or request.session is None:
            return answer
        outputs = row_splitting.joined(request.session.outputs, local, answer.outputs, rows)
        return msgspec.structs.replace(answer, outputs=outputs)

    async def _acquire(self, request: Request) -> Session:
        """The loaded session for a request; the caller uses it before its next await."""
        while True:
            session = await self._manager.acquire(request.model, request.deadline)
            if request.session is not None and session.digest == request.session.digest:
                break
            await self._prepare_again(request, session)
        request.session = session
        return session


def _holds(held: Held, strange: Array | None) -> bool:
    """True where the certificate's promise stands although further rows go to the cloud tier than its score sends.

    Those that are kept and differ from the cloud's get fewer then; the other promises were proven by score alone.
    """
    return strange is None or held.certificate.target == REGRET
