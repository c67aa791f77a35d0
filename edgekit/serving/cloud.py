"""The cloud tier's model server: models from the registry behind the serving code that devices use too."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import ROLE_GOLDEN, Manifest
from edgekit.errors import EdgekitError, ManifestError, NotFoundError, SelfTestError
from edgekit.runtimes import open_runtime
from edgekit.sealing.opening import read_file
from edgekit.serving.api.description import ModelDescription, check_outputs, describe_session
from edgekit.serving.oip.codec import InferRequest, InferResponse
from edgekit.serving.oip.deadlines import deadline_ms
from edgekit.serving.session.preparation import parse_postprocess, prepare
from edgekit.serving.session.sequence import parse_sequence
from edgekit.serving.session.session import Load, Session
from edgekit.serving.session.statistics import Statistics

FetchBundle = Callable[[str], tuple[Manifest, Path]]


class CloudModels:
    """ModelServer over bundles that are loaded at the start, one version of each model.

    Use `CloudModels.open`. The parameters of every answer carry ``edgekit_route`` (``cloud``), ``edgekit_model`` and
    ``edgekit_version``.
    """

    def __init__(self, sessions: dict[str, Session]) -> None:
        self._sessions = sessions
        self._counters = {name: Counter({"requests": 0, "errors": 0}) for name in sessions}

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
        """Fetch, load and self-test every model. When one fails, the others are freed.

        Args:
            models: Names of the models.
            fetch: Returns a model's manifest and the folder with its verified files; may block.
            threads: Threads of each runtime.
            queue_limit: Most requests of one model that may wait or run.
            load: Opens a bundle's runtime; the adapters of `edgekit.runtimes` where None.

        Raises:
            SelfTestError: a model's answers differ from those of its float model by more than the tolerance.
            EdgekitError: any error of `fetch` or of the runtime.
        """
        opener: Load = load or functools.partial(open_runtime, threads=threads)
        sessions: dict[str, Session] = {}
        async with contextlib.AsyncExitStack() as on_error:
            for name in models:
                manifest, folder = fetch(name)
                sessions[name] = await Session.open(manifest, folder, opener, queue_limit=queue_limit)
                on_error.push_async_callback(sessions[name].close)
                await _self_test(sessions[name])
                await sessions[name].measure()
                await sessions[name].calibrate()
            on_error.pop_all()
        return cls(sessions)

    async def close(self) -> None:
        """Finish all running requests and free every model."""
        for session in self._sessions.values():
            await session.close()

    def models(self) -> list[str]:
        """Names of the models."""
        return list(self._sessions)

    def ready(self) -> bool:
        """Always True, because all models are loaded before the first request."""
        return True

    def describe(self, model: str, version: str | None) -> ModelDescription:
        """Describe a model; see ModelServer."""
        return describe_session(self._find(model, version))

    async def answer(self, model: str, version: str | None, request: InferRequest) -> InferResponse:
        """Answer one request; see ModelServer."""
        session = self._find(model, version)
        self._counters[model]["requests"] += 1
        try:
            check_outputs(session, request)
            left = deadline_ms(request.parameters)
            deadline = None if left is None else time.monotonic() + left / 1000
            prepared = await prepare(lambda: session, request.inputs, parse_postprocess(request.parameters))
            place = None if session.streams is None else parse_sequence(request.parameters)
            outputs = await prepared.finish(await session.run(prepared.inputs, deadline=deadline, place=place))
        except EdgekitError:
            self._counters[model]["errors"] += 1
            raise
        served = session.manifest.version
        parameters = {"edgekit_route": "cloud", "edgekit_model": session.digest, "edgekit_version": served}
        return InferResponse(model, served, outputs, parameters)

    def statistics(self, model: str, version: str | None) -> Statistics:
        """Statistics of a model; see ModelServer."""
        return self._find(model, version).statistics

    def counters(self) -> dict[str, dict[str, float]]:
        """Rising counters by model: `requests` and `errors`."""
        return {name: {key: float(n) for key, n in one.items()} for name, one in self._counters.items()}

    def version(self, model: str) -> str:
        """The served version of a model."""
        return self._find(model, None).manifest.version

    def _find(self, model: str, version: str | None) -> Session:
        session = self._sessions.get(model)
        if session is None:
            raise NotFoundError(f"there is no model {model!r}, this cloud tier has {', '.join(self._sessions)}")
        if version not in (None, session.manifest.version):
            served = session.manifest.version
            raise NotFoundError(f"model {model!r} has no version {version} in this cloud tier, it serves {served}")
        return session


async def _self_test(session: Session) -> None:
    manifest = session.manifest
    try:
        golden = read_file(manifest, session.folder, manifest.file(ROLE_GOLDEN))
    except OSError as error:
        raise ManifestError(f"golden samples cannot be read: {error}") from error
    result = await session.call(lambda runtime: self_test(runtime, manifest, golden))
    if not result.passed:
        raise SelfTestError(f"{manifest.name} {manifest.version} failed its self-test: {'; '.join(result.faults)}")
