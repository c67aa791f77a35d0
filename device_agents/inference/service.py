"""InferenceService: answers locally, falls back to the cloud tier, switches models without a gap.

Serve it with `edgekit.serving.http.app.App`, or embed it in an application and await `infer`; both mean the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from device_agents.inference import routing_rules
from device_agents.inference.fallback import Fallback
from device_agents.inference.request import Request, parse_parameters
from device_agents.inference.router import Places
from device_agents.update.self_test import check_golden, run_self_test
from edgekit.bundle.golden import SelfTest
from edgekit.bundle.manifest import Manifest
from edgekit.clock import SystemClock
from edgekit.errors import DataError, EdgekitError, NotFoundError, UnavailableError
from edgekit.protocols import Clock, CloudTier
from edgekit.runtimes.providers import Acceleration
from edgekit.serving.api.description import ModelDescription, check_outputs, describe_session
from edgekit.serving.models.load_progress import LoadListener, told
from edgekit.serving.models.manager import Residents
from edgekit.serving.models.memory_growth import Grown
from edgekit.serving.models.options import ModelOptions, ModelSettings
from edgekit.serving.oip.codec import InferRequest, InferResponse
from edgekit.serving.session.memory_usage import Footprints
from edgekit.serving.session.preparation import as_sent, parse_postprocess, prepare
from edgekit.serving.session.session import Load, Session
from edgekit.serving.session.statistics import Statistics
from edgekit.serving.worker.loader import Loader
from edgekit.tensors import Array

COUNTERS = (
    *("requests", "local", "cloud", "degraded", "errors", "cloud_errors"),
    *("runs", "run_us", "runtime_errors", "unusable"),  # of the local model; `run_us` are microseconds, queue included
    *("shed", "expired"),  # not run by the local model: its queue was full, the deadline was too near
)
MAX_DEADLINE_MS = 24 * 3600 * 1000


class InferenceService:
    """Local inference for any number of models, with the cloud tier behind it.

    Args:
        cloud: Where unsure answers go; None for nowhere.
        threads: Of each runtime.
        options: How models are served.
        models: What is different for some, by name.
        memory_budget_bytes: For all models together; 0 for no limit.
        footprints: What models were measured to hold in memory, kept across restarts; None forgets it.
        deadline_ms: Of requests that name none; None for no limit.
        threshold: Local answers with a score below it go to the cloud; 0 keeps all, above 1 sends all.
        cloud_timeout_seconds: Longest wait for the cloud tier.
        providers: ONNX Runtime execution providers; None takes the best that is installed.
        acceleration: The same and more, in place of `providers`.
        clock: Time for deadlines and the breaker.
        load: Opens a bundle's runtime; the adapters of `edgekit.runtimes`, isolated as `options` say, where None.
        spread: Random numbers from 0 to 1 for the breaker.

    Attributes:
        load: As above; blocks.
    """

    def __init__(
        self,
        *,
        cloud: CloudTier | None = None,
        threads: int = 1,
        options: ModelOptions | None = None,
        models: Mapping[str, ModelSettings] | None = None,
        memory_budget_bytes: int = 0,
        footprints: Footprints | None = None,
        deadline_ms: float | None = None,
        threshold: float = 0.8,
        cloud_timeout_seconds: float = 2.0,
        providers: Sequence[str] | None = None,
        acceleration: Acceleration | None = None,
        clock: Clock | None = None,
        load: Load | None = None,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock or SystemClock()
        self._fallback = Fallback(cloud, self._clock, cloud_timeout_seconds, spread) if cloud else None
        self._deadline_ms = deadline_ms
        own, defaults = models or {}, options or ModelOptions()

        def options_of(model: str) -> ModelOptions:
            return own[model].over(defaults) if model in own else defaults

        loader = Loader(options_of, threads=threads, providers=providers, acceleration=acceleration)
        self.load: Load = load or loader
        self._residents = Residents(
            self.load,
            options_of,
            budget_bytes=memory_budget_bytes,
            footprints=footprints,
            prepare=loader.prepare if load is None else None,
            clock=self._clock.monotonic,
        )
        self._places = Places(self._residents, self._fallback, threshold, self._clock, self._take_another)
        self._counters: dict[str, dict[str, int]] = {}
        self._asked_before = 0

    async def __aenter__(self) -> InferenceService:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish what was asked and free every model."""
        await self._residents.close()

    # --- models

    async def activate(self, model: str, manifest: Manifest, folder: Path, *, compare: bool = True) -> None:
        """Load and warm a bundle, compare its golden answers, switch to it between two requests, close the one before.

        Args:
            model: Name that clients ask for.
            manifest: Of the bundle, whose files the caller has verified.
            folder: Where they are; they must stay there while the bundle is active.
            compare: False where the caller has seen this bundle answer its golden samples on this device.

        Raises:
            SelfTestError: its answers are outside the tolerance; names output, difference and limit.
            MemoryBudgetError: it does not fit into the memory budget.
            RuntimeLoadError, ManifestError, DataError, MissingExtraError: it cannot be loaded or run; the one before
                keeps answering.
        """
        self._counters.setdefault(model, _new_counters())
        await self._residents.activate(model, manifest, folder, check=_ask_golden if compare else None)

    async def try_bundle(self, manifest: Manifest, folder: Path) -> SelfTest:
        """Judge a bundle that is not active by its golden samples, with a runtime of its own, isolated as it will be.

        Raises:
            As `device_agents.update.self_test.run_self_test`.
        """
        async with told(manifest.name, self._residents.listener, self._clock.monotonic):
            return await run_self_test(manifest, folder, load=self.load)

    def listen(self, listener: LoadListener) -> None:
        """Call ``listener(kind, model, seconds)`` while a load takes long (``model-loading``), and after it."""
        self._residents.listener = listener

    async def deactivate(self, model: str) -> None:
        """Stop answering for a model locally; what was asked before is answered. No error when it does not answer."""
        await self._residents.deactivate(model)

    async def self_test(self, model: str) -> SelfTest:
        """Ask the live model its golden samples, in line with other requests.

        Raises:
            NotFoundError: there is no such local model.
            SelfTestError: the answers are outside the tolerance.
            RuntimeLoadError, ManifestError: it does not answer, or its golden samples are damaged.
        """
        if self._session(model) is None:
            raise NotFoundError(f"there is no local model {model!r}")
        return await _ask_golden(await self._residents.acquire(model))

    def provider(self, model: str) -> str:
        """What really runs a model, or ran it when it was last in memory; empty where there is none."""
        session = self._session(model)
        return session.runtime.provider if session else ""

    # --- asking

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: str | None = None,
        route: str = routing_rules.AUTO,
        deadline_ms: float | None = None,
        postprocess: bool | None = None,
    ) -> InferResponse:
        """Answer from the device, or from the cloud tier where that is wanted and there.

        Args:
            model: Its name.
            inputs: Logical inputs by name; or bytes, one element of BYTES a row, where the bundle says how to decode.
            version: Of the local bundle; None for whichever is active.
            route: ``auto``, ``local-only`` (nothing leaves the device) or ``cloud-only``.
            deadline_ms: Time for the whole answer, from now. The local model does not begin after it, and what is left
                of it bounds the wait for the cloud tier; a run that has begun is answered, if late.
            postprocess: Whether the bundle's steps after the model are done (labels, boxes ...); None where they are
                when bytes were sent.

        Returns:
            Outputs by name, and parameters: ``edgekit_route`` (local, cloud, degraded), ``edgekit_reason``,
            ``edgekit_score`` of the local answer, ``edgekit_model`` and ``edgekit_version`` of the device's bundle.

        Raises:
            DataError: the inputs do not fit the model, or route or deadline are not valid.
            NotFoundError: there is no such model or version.
            OverloadedError: too many requests wait, or the deadline cannot be kept (DeadlineError), and the cloud tier
                did not take this one.
            UnavailableError: `route` allows no place that answers; says why.
            RuntimeLoadError: the runtime failed, and the cloud tier did not answer either.
        """
        if route not in routing_rules.ROUTES:
            raise DataError(f"edgekit_route is {route!r}, expected one of {', '.join(routing_rules.ROUTES)}")
        session = self._session(model)
        self._check_there(model, version, session)
        counters = self._counters.get(model) or _new_counters()
        request = Request(model, inputs, session, route, version, self._deadline(deadline_ms), counters, postprocess)
        counters["requests"] += 1
        try:
            if not as_sent(session, postprocess):
                await self._prepare(request)
            found = await self._places.answer(request)
            outputs = found.outputs
            if request.prepared is not None:
                outputs = await request.prepared.finish(outputs)
        except EdgekitError:
            counters["errors"] += 1
            raise
        counters[found.parameters["edgekit_route"]] += 1
        if model not in self._counters:
            self._counters[model] = counters  # the cloud tier knows a name that the device did not
        return found if outputs is found.outputs else msgspec.structs.replace(found, outputs=outputs)

    async def _prepare(self, request: Request) -> None:
        """Decode what was sent as bytes, for the bundle that is to answer."""
        request.take(await prepare(lambda: self._session(request.model), request.sent, request.postprocess))

    async def _take_another(self, request: Request, session: Session) -> None:
        """Another bundle came while a request waited: it is answered by that one, where it may be."""
        self._check_there(request.model, request.version, session)
        await self._prepare(request)

    def _deadline(self, deadline_ms: float | None) -> float | None:
        if deadline_ms is None:
            deadline_ms = self._deadline_ms
        if deadline_ms is None:
            return None
        if not 0 < deadline_ms <= MAX_DEADLINE_MS:
            raise DataError(
                f"edgekit_deadline_ms is {str(deadline_ms)[:40]}, expected above 0 and at most {MAX_DEADLINE_MS}"
            )
        return self._clock.monotonic() + deadline_ms / 1000

    # --- ModelServer

    def models(self) -> list[str]:
        """Names of the models that answer locally."""
        return [name for name in self._residents.all() if self._session(name)]

    def ready(self) -> bool:
        """True while no model is being loaded for the first time; a device without models is ready for one."""
        return not any(model.is_first_load for model in self._residents.all().values())

    def describe(self, model: str, version: str | None) -> ModelDescription:
        """Describe a local model; see ModelServer."""
        found = describe_session(self._loaded(model, version))
        kept = self._residents.get(model)
        is_out = kept is not None and kept.session is None
        return msgspec.structs.replace(found, loaded=False) if is_out else found

    def statistics(self, model: str, version: str | None) -> Statistics:
        """What the local model has done since it was activated; see ModelServer."""
        return self._loaded(model, version).statistics

    async def answer(self, model: str, version: str | None, request: InferRequest) -> InferResponse:
        """Answer a protocol request; its parameters are those of `infer` with ``edgekit_`` before them."""
        route, deadline_ms = parse_parameters(request.parameters)
        session = self._session(model)
        if session is not None and request.outputs:
            check_outputs(session, request)
        return await self.infer(
            model,
            request.inputs,
            version=version,
            route=route,
            deadline_ms=deadline_ms,
            postprocess=parse_postprocess(request.parameters),
        )

    def counters(self) -> dict[str, dict[str, float]]:
        """Rising counters by model: COUNTERS, `swaps`, `loads`, `evictions`, and `crashes` of its own process."""
        found = {}
        for name, counters in self._counters.items():
            model = self._residents.get(name)
            own = model.counters if model else _NO_MODEL
            found[name] = {key: float(n) for key, n in (*counters.items(), *own.items())}
            found[name]["crashes"] = float(model.crashes if model else 0)
        return found

    async def grown(self) -> list[Grown]:
        """What holds far more memory than when it was loaded, each told once; looks only where something was asked."""
        asked = sum(one["requests"] for one in self._counters.values())
        if asked == self._asked_before:
            return []
        self._asked_before = asked
        return await self._residents.grown()

    def gauges(self) -> dict[str, dict[str, float]]:
        """Values of now, by model with a bundle; looks at the memory of workers, for up to a millisecond each.

        `memory_bytes` (0 while put out), `waiting` requests, `loaded` (1 or 0), `restarts` of its worker.
        """
        found = {}
        for name, model in self._residents.all().items():
            if model.bundle is not None:
                session = model.session
                waiting = model.waiting + (session.pending if session else 0)
                held = (session.memory_bytes() or model.bytes) if session else 0
                restarts = getattr(session.runtime, "restarts", 0) if session else 0
                found[name] = {
                    "memory_bytes": held,
                    "waiting": waiting,
                    "loaded": float(session is not None),
                    "restarts": restarts,
                }
        return found

    def _session(self, model: str) -> Session | None:
        """The active bundle's session, or its last one while it is out of memory: for what describes it."""
        kept = self._residents.get(model)
        return None if kept is None or kept.bundle is None else kept.session or kept.last

    def _loaded(self, model: str, version: str | None) -> Session:
        session = self._session(model)
        self._check_there(model, version, session)
        if session is None:
            raise UnavailableError(f"model {model!r} has no local bundle yet; the cloud tier answers for it")
        return session

    def _check_there(self, model: str, version: str | None, session: Session | None) -> None:
        if session is None and self._fallback is None:
            raise NotFoundError(f"there is no model {model!r}", advice=f"Models: {', '.join(self.models()) or 'none'}.")
        found = session.manifest.version if session else "none"
        if version not in (None, found):
            raise NotFoundError(f"model {model!r} has no version {version}, its active version is {found}")


async def _ask_golden(session: Session) -> SelfTest:
    return await session.call(lambda runtime: check_golden(runtime, session.manifest, session.folder))


def _new_counters() -> dict[str, int]:
    return dict.fromkeys(COUNTERS, 0)


_NO_MODEL = {"swaps": 0, "loads": 0, "evictions": 0}
