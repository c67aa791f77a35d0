"""Who answers a request: the local model, the cloud tier or both, as `routing_rules` decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from device_agents.inference import routing_rules
from device_agents.inference.fallback import Fallback, FallbackError
from device_agents.inference.request import Request, nowhere
from device_agents.inference.routing_rules import Decision, Place, Reason
from edgekit.errors import CloudError, RuntimeLoadError, UnavailableError
from edgekit.protocols import Clock
from edgekit.runtimes.logical import check_inputs
from edgekit.serving.models.manager import Residents
from edgekit.serving.oip.codec import InferResponse
from edgekit.serving.session.session import DeadlineError, OverloadedError, Session
from edgekit.serving.worker.runtime import WorkerRestartingError
from edgekit.tensors import Array


class Places:
    """Asks the place that is to answer, and the other one where that did not.

    Args:
        residents: The local models.
        fallback: The cloud tier; None for none.
        threshold: Local answers with a score below it go to the cloud.
        clock: For deadlines.
        take_another: Called with a request and the session of another bundle than the one that it was prepared for.
    """

    def __init__(
        self,
        residents: Residents,
        fallback: Fallback | None,
        threshold: float,
        clock: Clock,
        take_another: Callable[[Request, Session], Awaitable[None]],
    ) -> None:
        self._residents, self._fallback = residents, fallback
        self._threshold, self._clock, self._take_another = threshold, clock, take_another

    async def answer(self, request: Request) -> InferResponse:
        """Answer a prepared request; raises as `InferenceService.infer`."""
        has_cloud = self._fallback is not None
        first = routing_rules.before_running(request.route, has_local=request.session is not None, has_cloud=has_cloud)
        if first.place is not Place.LOCAL:
            return await self._elsewhere(request, first)
        try:
            outputs = await self._run(request)
        except (OverloadedError, RuntimeLoadError) as error:
            return await self._without_local(request, error)
        assert request.session is not None  # it answered
        score = routing_rules.score(request.session.manifest.task, outputs)
        after = routing_rules.after_running(
            request.route,
            score=score,
            threshold=self._threshold,
            has_cloud=has_cloud,
            usable=request.usable,
        )
        if after.place is not Place.CLOUD:
            return request.respond(outputs, after, score)
        try:
            return request.respond(await self._ask_cloud(request), after, score)
        except FallbackError as error:
            return request.respond(outputs, Decision(Place.DEGRADED, error.reason), score)

    async def _elsewhere(self, request: Request, first: Decision) -> InferResponse:
        if first.place is Place.NOWHERE:
            raise UnavailableError(nowhere(request, first.reason))
        if request.session is not None:
            check_inputs(request.session.runtime.inputs, request.inputs)
        return request.respond(await self._ask_cloud(request), first)

    async def _run(self, request: Request) -> dict[str, Array]:
        """Run the local model, and count what probation and telemetry judge it by."""
        start, counters = self._clock.monotonic(), request.counters
        try:
            session = self._residents.present(request.model)
            if session is None or session is not request.session:
                session = await self._acquire(request)
            outputs = await session.run(request.inputs, deadline=request.deadline)
        except OverloadedError as error:
            if isinstance(error, WorkerRestartingError):  # refused for the model's own fault, not for the load
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
        request.usable = routing_rules.usable(outputs)
        if not request.usable:
            counters["unusable"] += routing_rules.usable(request.inputs)
        return outputs

    async def _without_local(self, request: Request, error: OverloadedError | RuntimeLoadError) -> InferResponse:
        """The local model gave no answer at all: only the cloud tier is left."""
        if request.route == routing_rules.LOCAL_ONLY or self._fallback is None:
            raise error
        reason = Reason.OVERLOADED if isinstance(error, OverloadedError) else Reason.LOCAL_ERROR
        try:
            return request.respond(await self._ask_cloud(request), Decision(Place.CLOUD, reason))
        except CloudError as away:
            raise error from away

    async def _ask_cloud(self, request: Request) -> dict[str, Array]:
        assert self._fallback is not None
        left = None if request.deadline is None else request.deadline - self._clock.monotonic()
        expected = request.session.runtime.outputs if request.session else ()
        try:
            return await self._fallback.ask(request.model, request.inputs, left_seconds=left, expected=expected)
        except CloudError:
            request.counters["cloud_errors"] += 1
            raise

    async def _acquire(self, request: Request) -> Session:
        """The session that is to run a request now; use it before the next await."""
        while True:
            session = await self._residents.acquire(request.model, request.deadline)
            if request.session is not None and session.digest == request.session.digest:
                break
            await self._take_another(request, session)
        request.session = session
        return session
