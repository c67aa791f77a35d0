"""The cloud tier's model server: several versions of several models, which may change while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.order import version_order
from edgekit.errors import DataError, EdgekitError, NotFoundError
from edgekit.runtimes import open_runtime
from edgekit.serving.api.description import ModelDescription, check_outputs, describe_session
from edgekit.serving.cloud.loaded import LoadedVersion
from edgekit.serving.cloud.versions import is_for_canary
from edgekit.serving.models.cloud_options import CloudModelOptions
from edgekit.serving.oip.codec import InferRequest, InferResponse
from edgekit.serving.oip.deadlines import DEADLINE_PARAMETER, deadline_ms
from edgekit.serving.oip.parameters import ROUTE_PARAMETER, has_own
from edgekit.serving.session.latency import Latency
from edgekit.serving.session.preparation import POSTPROCESS_PARAMETER, parse_postprocess, prepare
from edgekit.serving.session.sequence import Sequence as Place
from edgekit.serving.session.sequence import parse_sequence
from edgekit.serving.session.session import Load
from edgekit.serving.session.statistics import Statistics
from edgekit.tensors import finite, usable

_PARAMETERS = (ROUTE_PARAMETER, DEADLINE_PARAMETER, POSTPROCESS_PARAMETER)
_ROUTES = ("auto", "cloud-only")
FetchBundle = Callable[[str], tuple[Manifest, Path]]


class _Model:
    """One name: its versions, and who answers."""

    def __init__(self) -> None:
        self.versions: dict[str, LoadedVersion] = {}
        self.main = self.canary = ""
        self.share = 0.0
        self.number = 0  # of requests while there is a canary
        self.counters = Counter({"requests": 0, "errors": 0, "swaps": 0})


class CloudModels:
    """ModelServer over loaded versions. `serve` changes the versions of one model, also while it answers.

    The parameters of every answer carry ``edgekit_route`` (``cloud``), ``edgekit_model`` and ``edgekit_version``.
    """

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._closing: set[asyncio.Task[None]] = set()  # of versions that are served no more

    @classmethod
    async def open(
        cls,
        models: Sequence[str],
        fetch: FetchBundle,
        *,
        threads: int,
        queue_limit: int = 256,
        load: Load | None = None,
    ) -> CloudModels:
        """Serve one version of each model. When one cannot be loaded, the others are freed.

        Args:
            models: Names of the models.
            fetch: Returns a model's manifest and the folder with its verified files; may block.
            threads: Threads of each runtime.
            queue_limit: Most requests of one model that may wait or run.
            load: Opens a bundle's runtime; the adapters of `edgekit.runtimes` where None.

        Raises:
            EdgekitError: any error of `fetch` and of `LoadedVersion.open`.
        """
        opener: Load = load or functools.partial(open_runtime, threads=threads)
        served, options = cls(), CloudModelOptions(queue_limit=queue_limit)
        async with contextlib.AsyncExitStack() as on_error:
            on_error.push_async_callback(served.close)
            for name in models:
                served.serve(name, [await LoadedVersion.open(*fetch(name), opener, options)])
            on_error.pop_all()
        return served

    def serve(self, name: str, versions: Sequence[LoadedVersion], *, canary: str = "", share: float = 0.0) -> None:
        """Serve these versions of a model from now on, and free its others when their requests are answered.

        Args:
            name: The model.
            versions: The first one answers requests that name no version. Those that were served already go on.
            canary: Version that answers a `share` of the requests that name none; empty for none.
            share: 0 to 1.
        """
        model = self._models.setdefault(name, _Model())
        before, model.versions = model.versions, {one.version: one for one in versions}
        main, earlier = versions[0], before.get(model.main)
        if earlier is not main:
            model.counters["swaps"] += 1
            streams = earlier.session.streams if earlier is not None else None
            if main.session.streams is not None and streams is not None:
                main.session.streams.follow(streams)
        model.main, model.canary, model.share = main.version, canary, share
        self._free(old for old in before.values() if old not in versions)

    def remove(self, name: str) -> None:
        """Serve a model no more, and free it when its requests are answered."""
        self._free(self._models.pop(name, _Model()).versions.values())

    def _free(self, versions: Iterable[LoadedVersion]) -> None:
        for one in versions:
            task = asyncio.get_running_loop().create_task(one.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Finish all running requests and free every model."""
        for name in list(self._models):
            self.remove(name)
        await asyncio.gather(*self._closing)

    def models(self) -> list[str]:
        """Names of the models."""
        return list(self._models)

    def ready(self) -> bool:
        """Always True, because every model is loaded before it is served."""
        return True

    def loaded(self, model: str) -> Mapping[str, LoadedVersion]:
        """The served versions of a model; empty for none."""
        return dict(self._models[model].versions) if model in self._models else {}

    def describe(self, model: str, version: str | None) -> ModelDescription:
        """Describe a model; see ModelServer."""
        served = tuple(sorted(self._find(model).versions, key=version_order))
        return msgspec.structs.replace(describe_session(self._version(model, version).session), versions=served)

    async def answer(self, model: str, version: str | None, request: InferRequest) -> InferResponse:
        """Answer one request; see ModelServer."""
        begin = time.perf_counter()
        found, loaded = self._find(model), self._choose(model, version, request)
        found.counters["requests"] += 1
        try:
            with loaded.used() as session:
                _check_parameters(request)
                check_outputs(session, request)
                left = deadline_ms(request.parameters)
                deadline = None if left is None else time.monotonic() + left / 1000
                prepared = await prepare(lambda: session, request.inputs, parse_postprocess(request.parameters))
                place = None if session.streams is None else parse_sequence(request.parameters)
                outputs = await prepared.finish(await session.run(prepared.inputs, deadline=deadline, place=place))
        except EdgekitError:
            found.counters["errors"] += 1
            raise
        loaded.latency.add(time.perf_counter() - begin)
        if not usable(outputs) and finite(request.inputs):
            found.counters[f"unusable_answers.{loaded.version}"] += 1
        parameters = {"edgekit_route": "cloud", "edgekit_model": session.digest, "edgekit_version": loaded.version}
        return InferResponse(model, loaded.version, outputs, parameters)

    def statistics(self, model: str, version: str | None) -> Statistics:
        """Statistics of a model; see ModelServer."""
        return self._version(model, version).session.statistics

    def counters(self) -> dict[str, dict[str, float]]:
        """Rising counters by model: `requests`, `errors`, `swaps`, and `unusable_answers` by version."""
        return {name: {key: float(n) for key, n in one.counters.items()} for name, one in self._models.items()}

    def gauges(self) -> dict[str, dict[str, float]]:
        """Present values by model: `waiting`, over all its versions."""
        return {
            name: {"waiting": float(sum(one.session.pending for one in model.versions.values()))}
            for name, model in self._models.items()
        }

    def latencies(self) -> dict[tuple[str, str], Latency]:
        """Durations of answered requests by model and version."""
        return {
            (name, version): one.latency
            for name, model in self._models.items()
            for version, one in model.versions.items()
        }

    def version(self, model: str) -> str:
        """The version that answers requests which name none."""
        return self._find(model).main

    def _choose(self, model: str, version: str | None, request: InferRequest) -> LoadedVersion:
        found = self._find(model)
        if version is None and found.canary:
            place: Place | None = None
            if found.versions[found.main].session.streams is not None:
                place = parse_sequence(request.parameters)
            number, found.number = found.number, found.number + 1
            if is_for_canary(found.share, number, place.id if place is not None else None):
                return found.versions[found.canary]
        return self._version(model, version)

    def _find(self, model: str) -> _Model:
        found = self._models.get(model)
        if found is None:
            raise NotFoundError(f"there is no model {model!r}, this cloud tier has {', '.join(self._models)}")
        return found

    def _version(self, model: str, version: str | None) -> LoadedVersion:
        found = self._find(model)
        loaded = found.versions.get(version or found.main)
        if loaded is None:
            served = ", ".join(sorted(found.versions, key=version_order))
            raise NotFoundError(f"model {model!r} has no version {version} in this cloud tier, it serves {served}")
        return loaded


def _check_parameters(request: InferRequest) -> None:
    """Refuse parameters of edgekit's own that are unknown, and a route that would keep the request on a device."""
    if has_own(request.parameters, _PARAMETERS):
        route = request.parameters.get(ROUTE_PARAMETER, _ROUTES[0])
        if route not in _ROUTES:
            raise DataError(
                f"{ROUTE_PARAMETER} is {str(route)[:40]!r}, and this is the cloud tier",
                advice=f"Send {' or '.join(_ROUTES)}, leave it out, or ask the agent on the device.",
            )
