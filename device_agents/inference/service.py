"""InferenceService: answers requests locally, falls back to the cloud tier, and switches models without a gap.

Serve it with `edgekit.serving.http.app.App`, or embed it in an application and await `infer`; the answers are the same.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from device_agents.inference import routing_rules
from device_agents.inference.cascade.certificates import Certificates
from device_agents.inference.cascade.certificates import Listener as CertificateListener
from device_agents.inference.cloud.budgets import Budgets
from device_agents.inference.cloud.budgets import Listener as BudgetListener
from device_agents.inference.cloud.endpoints import CloudEndpoints, endpoints_of
from device_agents.inference.egress_rules import BundleLimits
from device_agents.inference.exploring import Explorer
from device_agents.inference.options import CloudOptions, ServiceOptions, with_old_names
from device_agents.inference.request import Request, parse_parameters
from device_agents.inference.router import InferenceRouter
from device_agents.inference.watch.behaviour import BehaviourLog
from device_agents.inference.watch.counters import count_answer, new_counters
from device_agents.inference.watch.drift import Listener as DriftListener
from device_agents.inference.watch.figures import present, totals
from device_agents.inference.watch.observation import TakesSamples
from device_agents.inference.watch.observing import Observer
from device_agents.inference.watch.shadowing import Shadowing
from device_agents.shadow import ShadowTask
from device_agents.update.self_test import check_golden, run_self_test
from edgekit.bundle.golden import SelfTest
from edgekit.bundle.manifest import Manifest
from edgekit.clock import SystemClock
from edgekit.errors import AuthorError, DataError, EdgekitError, NotFoundError, UnavailableError
from edgekit.mqtt.messages import Behaviour, Shadow
from edgekit.protocols import Clock, CloudTier, Disk
from edgekit.serving.api.description import ModelDescription, check_outputs, describe_session
from edgekit.serving.models.load_progress import LONG_SECONDS, LoadListener
from edgekit.serving.models.manager import ModelManager
from edgekit.serving.models.memory_growth import Grown
from edgekit.serving.models.options import ModelOptions, ModelSettings, SendInputs
from edgekit.serving.oip.codec import InferRequest, InferResponse
from edgekit.serving.oip.deadlines import check_deadline_ms
from edgekit.serving.session.memory_usage import Footprints
from edgekit.serving.session.preparation import as_sent, parse_postprocess, prepare
from edgekit.serving.session.sequence import Sequence, parse_ignored_sequence, parse_sequence
from edgekit.serving.session.session import Load, Session
from edgekit.serving.session.statistics import Statistics
from edgekit.serving.worker.loader import Loader
from edgekit.sketches.sketch import Sketch
from edgekit.tensors import Array

if TYPE_CHECKING:
    from device_agents.inference.fallback import Fallback


class InferenceService:
    """Local inference for any number of models, with the cloud tier as a fallback.

    Args:
        cloud: Client of the cloud tier, or its endpoints; None for no cloud tier.
        options: How models are served.
        models: Options of single models, by name; they win over `options`.
        service: Options of the service as a whole.
        footprints: Stores the measured memory of models across restarts; None does not store it.
        clock: Time for deadlines and the circuit breaker.
        hold: Says why the cloud tier may not be called at present; None where it may be.
        disk: Folder where spent budgets, the evidence against certificates and the counts of the test of drift are
            stored across restarts; None does not store them.
        load: Opens a bundle's runtime; None for the adapters of `edgekit.runtimes`, isolated as `options` say.
        spread: Gives random numbers from 0 to 1 for the circuit breaker.
        old: Fields of `service` one by one, as release 0.1.0 took them; each gives a DeprecationWarning.

    Attributes:
        load: The function that opens a bundle's runtime; it blocks.
        certificates: The offload certificates of the active bundles.
    """

    def __init__(
        self,
        *,
        cloud: CloudTier | CloudEndpoints | None = None,
        options: ModelOptions | None = None,
        models: Mapping[str, ModelSettings] | None = None,
        service: ServiceOptions | None = None,
        footprints: Footprints | None = None,
        clock: Clock | None = None,
        hold: Callable[[], routing_rules.Reason | None] = lambda: None,
        disk: Disk | None = None,
        load: Load | None = None,
        spread: Callable[[], float] = random.random,
        **old: Any,
    ) -> None:
        service = with_old_names(service, old)
        self._clock = clock or SystemClock()
        self._default_deadline_ms = service.deadline_ms or None
        own, defaults = models or {}, options or ModelOptions()
        self._configured, self._assigned = frozenset(own), frozenset[str]()
        self._limits = BundleLimits()
        self._cloud_options = cloud_options = self._limits.within(
            functools.lru_cache(maxsize=256)(lambda model: CloudOptions.of(service, own.get(model)))
        )
        self._budgets = Budgets(service.budget, lambda model: cloud_options(model).budget, self._clock, disk)
        self.certificates = Certificates(
            service.explorations_per_day, disk, lambda model: cloud_options(model).cloud_inputs
        )
        self._observer = Observer(service, cloud_options, self._limits, self._clock, disk)
        self._fallback: Fallback | None = None
        self._explorer: Explorer | None = None
        endpoints = endpoints_of(cloud)
        if endpoints is not None:
            from device_agents.inference.fallback import Fallback  # only for a cloud tier

            timeout, share = service.cloud_timeout_seconds, service.exploration_share
            self._fallback = Fallback(endpoints, self._clock, timeout, cloud_options, spread, self._budgets, hold)
            self._explorer = Explorer(self._fallback, cloud_options, self.certificates, self._clock, share, spread)

        def options_of(model: str) -> ModelOptions:
            return own[model].over(defaults) if model in own else defaults

        loader = Loader(options_of, threads=service.threads, acceleration=service.acceleration)
        self.load: Load = load or loader
        self._manager = ModelManager(
            self.load,
            options_of,
            budget_bytes=service.memory_budget_bytes,
            footprints=footprints,
            prepare=loader.prepare if load is None else None,
            clock=self._clock.monotonic,
        )
        self._shadowing = Shadowing(self._manager, load or loader.aside, self._clock)
        self._router = self._make_router(cloud_options)
        self._counters: dict[str, dict[str, int]] = {}
        self._behaviour = BehaviourLog()
        self._answer_consent: Callable[[str, bool], Awaitable[str]] | None = None
        self._requests_at_last_survey = 0

    def _make_router(self, cloud_options: Callable[[str], CloudOptions]) -> InferenceRouter:
        return InferenceRouter(
            self._manager,
            self._fallback,
            cloud_options,
            self._clock,
            self._prepare_again,
            self.certificates,
            self._explorer,
            self._shadowing,
            self._observer.outliers,
        )

    async def __aenter__(self) -> InferenceService:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Answer the accepted requests, then unload every model."""
        if self._explorer is not None:
            await self._explorer.close()
        await self.certificates.close()
        await self._manager.close()
        await self._budgets.close()
        await self._observer.drift.close()

    # --- models

    async def activate(self, model: str, manifest: Manifest, folder: Path, *, compare: bool = True) -> None:
        """Load and warm up a bundle, compare its golden answers, switch to it, then close the previous bundle.

        Args:
            model: Name of the model in requests.
            manifest: Manifest of the bundle; the caller has verified its files.
            folder: Folder of the files; they must stay there while the bundle is active.
            compare: False where this bundle has passed its golden samples on this device before.

        Raises:
            SelfTestError: its answers are outside the tolerance; names output, difference and limit.
            MemoryBudgetError: it does not fit into the memory budget.
            RuntimeLoadError, ManifestError, DataError, MissingExtraError: it cannot be loaded or run; the previous
                bundle keeps answering.
        """
        self._counters.setdefault(model, new_counters())
        before = self._limits.begin(model, manifest.may_send)
        try:
            await self._manager.activate(model, manifest, folder, check=_run_golden if compare else None)
        except BaseException:
            if self._session(model) is not None:
                self._limits.settle(model, before)
            raise
        self._limits.settle(model, manifest.may_send)
        self.certificates.take(model, manifest, folder)
        self._observer.take(model, manifest, folder)

    async def try_bundle(self, manifest: Manifest, folder: Path) -> SelfTest:
        """Test a bundle that is not active on its golden samples, in a runtime of its own with the model's isolation.

        Raises:
            As `device_agents.update.self_test.run_self_test`.
        """
        async with self._manager.progress.report(manifest.name):
            return await run_self_test(manifest, folder, load=self.load)

    async def shadow(self, model: str, manifest: Manifest, folder: Path, task: ShadowTask) -> None:
        """Compare a bundle with the active one on the next inputs, until that ends; never raises for the bundle.

        Args:
            model: Name of the model.
            manifest, folder: The bundle; it has passed its self-test.
            task: When it ends, and where its result is stored.
        """
        await self._shadowing.run(model, manifest, folder, task)

    def shadowed(self, model: str) -> Shadow | None:
        """The last comparison of a bundle with the active one; None where there was none since the start."""
        return self._shadowing.report(model)

    def listen(self, listener: LoadListener, *, long_seconds: float = LONG_SECONDS) -> None:
        """Call ``listener(kind, model, seconds)`` in a load over `long_seconds` (``model-loading``) and after it."""
        self._manager.progress.listen(listener, long_seconds=long_seconds)

    def listen_certificates(self, listener: CertificateListener) -> None:
        """Call ``listener(kind, model, message, detail)`` where a certificate is void, or refuted in the field."""
        self.certificates.listen(listener)

    def listen_budgets(self, listener: BudgetListener) -> None:
        """Call ``listener(kind, model, message, detail)`` once a day for each cloud budget that is spent."""
        self._budgets.listen(listener)

    def listen_drift(self, listener: DriftListener) -> None:
        """Call ``listener(kind, model, error, message, detail)`` where inputs or answers begin or cease to differ."""
        self._observer.drift.listen(listener)

    def give_samples(self, taker: TakesSamples) -> None:
        """Let `taker` take the answers of local models whose inputs may leave the device."""
        self._router.taker = taker

    def send_inputs(self, model: str) -> SendInputs:
        """The policy of a model's inputs: whether they may leave the device."""
        return self._cloud_options(model).send_inputs

    async def deactivate(self, model: str) -> None:
        """Answer the accepted requests of a model, then unload it. No error for an unknown model."""
        await self._manager.deactivate(model)
        self.certificates.forget(model)
        self._observer.forget(model)

    async def self_test(self, model: str) -> SelfTest:
        """Run the golden samples on the live model, in its request queue.

        Raises:
            NotFoundError: there is no such local model.
            SelfTestError: the answers are outside the tolerance.
            RuntimeLoadError, ManifestError: the model does not answer, or its golden samples are damaged.
        """
        if self._session(model) is None:
            raise NotFoundError(f"there is no local model {model!r}")
        return await _run_golden(await self._manager.acquire(model))

    def provider(self, model: str) -> str:
        """The execution provider that runs a model, or ran it when it was last loaded; empty for an unknown model."""
        session = self._session(model)
        return session.runtime.provider if session else ""

    def assign(self, models: Collection[str]) -> None:
        """Set the names of the models that this device should have; the cloud tier answers for them meanwhile."""
        self._assigned = frozenset(models)

    # --- requests

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: str | None = None,
        route: str = routing_rules.AUTO,
        deadline_ms: float | None = None,
        postprocess: bool | None = None,
        sequence: Sequence | None = None,
        wanted: Collection[str] = (),
        request_id: str | None = None,
    ) -> InferResponse:
        """Answer from the local model or from the cloud tier, as `route` and the answer's score require.

        Args:
            model: Name of the model.
            inputs: Logical inputs by name; or bytes, one element of BYTES per row, where the bundle has preprocessing.
            version: Version of the local bundle; None for the active one.
            route: ``auto``, ``local-only`` (nothing leaves the device) or ``cloud-only``.
            deadline_ms: Time for the whole answer in milliseconds, from now. The local model does not start a run after
                the deadline, and the remaining time limits the wait for the cloud tier. A run that has started is
                answered, even if late.
            postprocess: Whether the bundle's postprocessing (labels, boxes ...) is applied; None applies it when bytes
                were sent.
            sequence: The stream of the request, for a model with state; None for a request of its own, from the zero
                state. Other models use its id for `stream_pause_seconds` only.
            wanted: Outputs of the model that the caller needs; empty for all. Other outputs may be missing.
            request_id: The caller's id, with which `outcome` can judge the answer; None where it does not.

        Returns:
            Outputs by name, and parameters: ``edgekit_route`` (local, cloud, degraded), ``edgekit_reason``,
            ``edgekit_score`` of the local answer, and ``edgekit_model`` and ``edgekit_version`` of the bundle that
            answered, where that is known; ``edgekit_certificate``, the id of the certificate, where one holds for this
            answer. An answer of the cloud tier has the digest of the device's bundle in
            ``edgekit_local_model``.

        Raises:
            DataError: the inputs do not fit the model, or route, deadline or stream are not valid.
            StreamEndedError: the stream has ended, by a switch or because it was idle.
            NotFoundError: there is no such model or version. A model that has no local bundle exists where it is
                assigned to this device (`assign`) or has settings of its own.
            OverloadedError: too many requests wait, or the deadline cannot be met (DeadlineError), and the cloud tier
                did not answer this one.
            UnavailableError: no route that the request allows is available; the message says why.
            RuntimeLoadError: the runtime failed, and the cloud tier did not answer either.
        """
        if route not in routing_rules.ROUTES:
            raise DataError(f"edgekit_route is {route!r}, expected one of {', '.join(routing_rules.ROUTES)}")
        session = self._session(model)
        self._check_exists(model, version, session)
        counters = self._counters.setdefault(model, new_counters())
        begun = self._clock.monotonic()
        deadline = self._deadline(deadline_ms)
        patience = None if deadline is None else deadline - self._clock.monotonic()
        request = Request(
            model,
            inputs,
            session,
            route,
            version,
            deadline,
            counters,
            postprocess,
            sequence,
            patience=patience,
            wanted=wanted,
        )
        counters["requests"] += 1
        try:
            if not as_sent(session, postprocess):
                await self._prepare(request)
            response = await self._router.answer(request)
            outputs = response.outputs
            if request.prepared is not None:
                outputs = await request.prepared.finish(outputs)
        except EdgekitError as error:
            counters["errors"] += 1
            if request.session is not None and not isinstance(error, AuthorError):  # not the client's fault
                self._behaviour.failed(model, request.session.digest)
                self._observer.sketches.failed(model, request.session.digest)
            raise
        answered_by = count_answer(counters, response.parameters)
        counters["certified"] += request.certificate is not None
        if request.session is not None:
            digest, now = request.session.digest, self._clock.monotonic()
            self._behaviour.answered(model, digest, now - begun, local=answered_by == routing_rules.Route.LOCAL)
            if request_id:
                self._behaviour.remember(model, request_id, digest, now)
            self._observer.answered(request, request.session, response, seconds=now - begun, now=now)
        return response if outputs is response.outputs else msgspec.structs.replace(response, outputs=outputs)

    async def _prepare(self, request: Request) -> None:
        """Preprocess the inputs for the active bundle."""
        request.take(await prepare(lambda: self._session(request.model), request.sent, request.postprocess))

    async def _prepare_again(self, request: Request, session: Session) -> None:
        """Prepare a request for the bundle that was activated while it waited, if the request allows its version."""
        self._check_exists(request.model, request.version, session)
        await self._prepare(request)

    def _deadline(self, deadline_ms: float | None) -> float | None:
        if deadline_ms is None:
            deadline_ms = self._default_deadline_ms
        return None if deadline_ms is None else self._clock.monotonic() + check_deadline_ms(deadline_ms) / 1000

    # --- ModelServer

    def models(self) -> list[str]:
        """Names of the models that answer locally."""
        return [name for name in self._manager.all() if self._session(name)]

    def ready(self) -> bool:
        """False while a model is loaded for the first time; a device without models is ready."""
        return not any(model.is_first_load for model in self._manager.all().values())

    def describe(self, model: str, version: str | None) -> ModelDescription:
        """Describe a local model; see ModelServer."""
        description = describe_session(self._known_session(model, version))
        entry = self._manager.get(model)
        is_unloaded = entry is not None and entry.session is None
        return msgspec.structs.replace(description, loaded=False) if is_unloaded else description

    def statistics(self, model: str, version: str | None) -> Statistics:
        """Statistics of the local model since its activation; see ModelServer."""
        return self._known_session(model, version).statistics

    async def answer(self, model: str, version: str | None, request: InferRequest) -> InferResponse:
        """Answer a protocol request; its parameters are the arguments of `infer`, prefixed with ``edgekit_``."""
        route, deadline_ms = parse_parameters(request.parameters)
        session = self._session(model)
        stateless = session is not None and session.streams is None  # it ignores streams, as Triton does
        sequence = (parse_ignored_sequence if stateless else parse_sequence)(request.parameters)
        if session is not None and request.outputs:
            check_outputs(session, request)
        postprocess = parse_postprocess(request.parameters)
        is_raw = session is None or as_sent(session, postprocess)  # then the client names the model's own outputs
        return await self.infer(
            model,
            request.inputs,
            version=version,
            route=route,
            deadline_ms=deadline_ms,
            postprocess=postprocess,
            sequence=sequence,
            wanted=tuple(request.outputs) if is_raw else (),
            request_id=request.id,
        )

    def outcome(self, model: str, request: str, *, good: bool) -> None:
        """Count the application's judgement of the answer to a request; see TakesOutcomes."""
        self._behaviour.outcome(model, request, self._clock.monotonic(), good=good)

    def ask_consent(self, answer: Callable[[str, bool], Awaitable[str]]) -> None:
        """Pass answers of the user to updates on to `answer`, which returns the version of the update."""
        self._answer_consent = answer

    async def consent(self, model: str, *, agreed: bool) -> str:
        """Take the user's answer to an update of a model; see TakesConsent."""
        if self._answer_consent is None:
            raise NotFoundError(f"no update of model {model!r} asks for an agreement")
        return await self._answer_consent(model, agreed)

    def behaviour(self, model: str) -> dict[str, Behaviour]:
        """How the bundles of a model behaved that answered last, by digest; the newest is the last."""
        return self._behaviour.behaviour(model)

    def counters(self) -> dict[str, dict[str, float]]:
        """Rising counts by model: COUNTERS, reasons, `swaps`, `loads`, `evictions`, `crashes`, those of `Fallback`."""
        return totals(self._counters, self._manager, self._fallback)

    def take_sketches(self) -> dict[str, Sketch]:
        """Sketches of the answers since the last call, by their names in telemetry."""
        return self._observer.sketches.take()

    async def grown(self) -> list[Grown]:
        """Models (or the agent) that hold far more memory than after loading, each reported once.

        Memory is measured only when requests have arrived since the last call.
        """
        requests = sum(one["requests"] for one in self._counters.values())
        if requests == self._requests_at_last_survey:
            return []
        self._requests_at_last_survey = requests
        return await self._manager.grown()

    def gauges(self) -> dict[str, dict[str, float]]:
        """Present values by model with a bundle; see `figures.present`."""
        return present(self._manager, self._observer.drift)

    def _session(self, model: str) -> Session | None:
        """The active bundle's session; while the model is unloaded its last session, which still describes it."""
        entry = self._manager.get(model)
        return None if entry is None or entry.bundle is None else entry.session or entry.last

    def _known_session(self, model: str, version: str | None) -> Session:
        session = self._session(model)
        self._check_exists(model, version, session)
        if session is None:
            raise UnavailableError(f"model {model!r} has no local bundle yet; the cloud tier answers for it")
        return session

    def _check_exists(self, model: str, version: str | None, session: Session | None) -> None:
        is_served = self._fallback is not None and self._fallback.serves(model)
        if session is None and not (is_served and self._is_known(model)):
            raise NotFoundError(
                f"there is no model {model!r}",
                advice=f"Models: {', '.join(self.models()) or 'none'}. A model that only the cloud tier has needs a "
                f"table [models.{model}] in the agent's settings.",
            )
        active = session.manifest.version if session else "none"
        if version not in (None, active):
            raise NotFoundError(f"model {model!r} has no version {version}, its active version is {active}")

    def _is_known(self, model: str) -> bool:
        """True for a model that is assigned to this device or has settings of its own."""
        return model in self._assigned or model in self._configured


async def _run_golden(session: Session) -> SelfTest:
    return await session.call(lambda runtime: check_golden(runtime, session.manifest, session.folder))
