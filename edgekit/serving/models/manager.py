"""The models of one server: loading, switching bundles, unloading, and loading again on request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import Manifest
from edgekit.errors import EdgekitError, NotFoundError, RuntimeLoadError
from edgekit.serving.models.load_progress import LoadProgress
from edgekit.serving.models.memory_budget import POLL_SECONDS, MemoryBudget
from edgekit.serving.models.memory_growth import Grown
from edgekit.serving.models.model import RETRY_LOAD_SECONDS, Model
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.memory_usage import Footprints, MemoryFootprints, return_freed_memory, rss_bytes
from edgekit.serving.session.queue import DeadlineError, OverloadedError
from edgekit.serving.session.session import Load, Session
from edgekit.serving.session.stream_table import StreamLimits
from edgekit.waiting import within

log = logging.getLogger(__name__)

Check = Callable[[Session], Awaitable[object]]


class ModelManager:
    """Loads models within a memory budget. All calls are made on one event loop.

    `activate` gives a name a bundle and loads it. To make room for another model, the budget may unload it; then the
    model stays known, and `acquire` loads it again when a request comes.

    A model's memory is measured at its load: as the growth of this process, or by `memory_bytes` of a runtime in a
    process of its own. Before its first load it is estimated.

    Args:
        load: Opens a bundle's runtime.
        options: Returns the options of a model by its name.
        budget_bytes: For all models together; 0 for no limit.
        footprints: Measurements of earlier loads; kept in memory only where None.
        prepare: Called before a bundle is loaded; it imports the runtime's library, so that the library does not count
            as the model's memory.
        clock: Monotonic seconds.

    Attributes:
        progress: Reports loads that take long.
    """

    def __init__(
        self,
        load: Load,
        options: Callable[[str], ModelOptions],
        *,
        budget_bytes: int = 0,
        footprints: Footprints | None = None,
        prepare: Callable[[Manifest], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._options, self._prepare, self._clock = load, options, prepare, clock
        self.progress = LoadProgress(clock)
        self._models: dict[str, Model] = {}
        self._aside: dict[str, Model] = {}  # bundles beside the active ones; they answer no request
        footprints = footprints or MemoryFootprints()
        self._budget = MemoryBudget(
            ChainMap(self._models, self._aside),
            self._unload,
            budget_bytes=budget_bytes,
            footprints=footprints,
            clock=clock,
        )
        self._measuring = asyncio.Lock()  # one load at a time, so that the growth of the process is one model's

    def get(self, name: str) -> Model | None:
        """A model by its name; None where that name never had a bundle."""
        return self._models.get(name)

    def all(self) -> dict[str, Model]:
        """Every model that was ever activated, by name, in that order."""
        return self._models

    async def grown(self) -> list[Grown]:
        """Models that hold far more memory than after their load, each reported once per load."""
        return await self._budget.grown()

    async def close(self) -> None:
        """Finish all running requests and free every model."""
        for name in list(self._models):
            await self.deactivate(name)

    # --- bundles

    async def activate(self, name: str, manifest: Manifest, folder: Path, *, check: Check | None = None) -> None:
        """Load and warm a bundle, then let it answer; `ModelOptions.swap` decides when the old bundle is unloaded.

        Args:
            name: Name that clients use.
            manifest: Manifest of the bundle.
            folder: Folder of its files.
            check: Called with the loaded model before any request runs on it; an error refuses the bundle.

        Raises:
            MemoryBudgetError: the bundle does not fit.
            EdgekitError: any error of the load or of `check`. After every error the old bundle goes on answering.
        """
        model = self._models.setdefault(name, Model(name, self._options(name)))
        async with model.switching:
            old = model.session
            old_stays = await self._budget.make_room(model, manifest)
            async with contextlib.AsyncExitStack() as on_error:
                if not old_stays and old is not None:
                    await self._unload(model)  # from now on requests wait until the end of `switching`
                    on_error.push_async_callback(self._restore, model)
                new = await self._open(model, manifest, folder, check)
                on_error.pop_all()
            model.bundle = manifest, folder
            model.release()
            model.serve(new)
            model.counters["swaps"] += 1
            if old_stays and old is not None:
                await self._close(old)

    async def deactivate(self, name: str) -> None:
        """Remove a model's bundle after its running requests. Does nothing where there is none."""
        model = self._models.get(name)
        if model is None:
            return
        async with model.switching:
            model.bundle, session = None, model.release()
            model.bytes = 0
            if session is not None:
                await self._close(session)

    @contextlib.asynccontextmanager
    async def aside(self, name: str, manifest: Manifest, folder: Path, load: Load) -> AsyncIterator[Model]:
        """A bundle that is loaded beside the active one of a model, and answers no request.

        Its memory counts for the budget. No model is unloaded for it, and it is unloaded first when another one needs
        its memory; then its `session` is None.

        Args:
            name: Name of a model with a bundle.
            manifest, folder: The bundle to load.
            load: Opens its runtime.

        Raises:
            NotFoundError: the model has no bundle.
            MemoryBudgetError: both do not fit.
            EdgekitError: any error of the load.
        """
        model = self._models.get(name)
        if model is None or model.bundle is None:
            raise NotFoundError(f"there is no local model {name!r}")
        options = msgspec.structs.replace(model.options, instances=1, batch=1, pinned=False)
        key = f"{name} {manifest.version} aside"  # no model has a name with a blank
        aside = self._aside[key] = Model(key, options, aside=True)
        try:
            await self._budget.reserve_aside(model, aside, manifest)
            aside.serve(await self._open(aside, manifest, folder, load=load))
            aside.used_at = 0.0
            yield aside
        finally:
            self._aside.pop(key, None)
            session = aside.release()
            if session is not None:
                await asyncio.shield(self._close(session))

    # --- sessions for requests

    def present(self, name: str) -> Session | None:
        """The session of a loaded model, which counts as used now; None where it is not loaded.

        Use the session before the next await, because the model may be unloaded after that.
        """
        model = self._models.get(name)
        if model is None or model.session is None:
            return None
        model.used_at = self._clock()
        return model.session

    async def acquire(self, name: str, deadline: float | None = None) -> Session:
        """The session of a model, which is loaded first where it was unloaded. Use it before the next await.

        Args:
            name: Name of a model with a bundle.
            deadline: In seconds of the clock.

        Raises:
            NotFoundError: there is no bundle.
            OverloadedError: too many requests wait for the load.
            DeadlineError: the model was not loaded in time.
            RuntimeLoadError: the model could not be loaded.
        """
        model = self._models.get(name)
        if model is None:
            raise NotFoundError(f"there is no model {name!r}")
        if model.session is None:
            await self._wait_for(model, deadline)
        model.used_at = self._clock()
        if model.session is None:
            raise NotFoundError(f"model {name!r} was removed while a request waited for it")
        return model.session

    async def _wait_for(self, model: Model, deadline: float | None) -> None:
        if model.waiting >= model.options.queue_limit:
            raise OverloadedError(model.name, model.waiting, max(1.0, model.load_seconds))
        model.waiting += 1
        try:
            while model.session is None and (model.bundle is not None or model.switching.locked()):
                if self._clock() < model.failed_at + RETRY_LOAD_SECONDS:
                    raise RuntimeLoadError(f"model {model.name} could not be loaded again: {model.failure}")
                if model.loading is None or model.loading.done():
                    model.loading = asyncio.ensure_future(self._reload(model))
                left = None if deadline is None else deadline - self._clock()
                await within(left, asyncio.shield(model.loading))
        except asyncio.TimeoutError as error:
            message = f"the deadline passed while model {model.name} was being loaded"
            retry = max(1.0, model.load_seconds)
            raise DeadlineError(model.name, model.waiting, retry, message, "allow more time") from error
        finally:
            model.waiting -= 1

    async def _reload(self, model: Model) -> None:
        """Load an unloaded model again; give up when no request waits for it any more."""
        while model.waiting:
            async with model.switching:
                if model.session is not None or model.bundle is None:
                    return
                manifest, folder = model.bundle
                try:
                    wait_until = await self._budget.reserve(model, manifest, urgent=False)
                    if wait_until is None:
                        model.serve(await self._open(model, manifest, folder))
                        return
                except EdgekitError as error:
                    self._note_failure(model, error)
                    return
            await asyncio.sleep(POLL_SECONDS)  # a model that was just loaded may not be unloaded yet

    # --- loading and unloading

    async def _open(
        self, model: Model, manifest: Manifest, folder: Path, check: Check | None = None, load: Load | None = None
    ) -> Session:
        """Load, warm and check a bundle, and note its memory."""
        started = self._clock()
        try:
            if self._prepare is not None and load is None:
                await asyncio.to_thread(self._prepare, manifest)
            async with self.progress.report(model.name), self._measuring:
                before = await asyncio.to_thread(rss_bytes)
                session = await Session.open(
                    manifest,
                    folder,
                    load or self._load,
                    queue_limit=model.options.queue_limit,
                    instances=model.options.instances,
                    clock=self._clock,
                    limits=StreamLimits(model.options.max_streams, model.options.stream_idle_seconds),
                )
                async with contextlib.AsyncExitStack() as on_error:
                    on_error.push_async_callback(self._close, session)
                    await session.warm()
                    if check is not None:
                        await check(session)
                    await self._choose_batch(model, session)
                    size = await self._budget.record(model, session, before)
                    on_error.pop_all()
        finally:
            model.reserved = 0
        if model.last is not None and model.last.digest == session.digest:
            session.statistics = model.last.statistics  # the same bundle goes on after it was unloaded
        model.counters["loads"] += 1
        model.bytes = model.loaded_bytes = size
        self._budget.settle()
        model.loaded_at = model.used_at = self._clock()
        model.load_seconds = model.loaded_at - started
        model.failed_at = model.loaded_at - RETRY_LOAD_SECONDS
        return session

    async def _choose_batch(self, model: Model, session: Session) -> None:
        """Set the rows that are joined, from the options or by a measurement, which is made once for each bundle."""
        if model.options.batch != "auto":
            session.batch_rows = model.options.batch
        elif model.last is not None and model.last.digest == session.digest:
            session.batch_rows = model.last.batch_rows
        else:
            await session.calibrate()

    async def _restore(self, model: Model) -> None:
        """Load the old bundle again after the new one could not be loaded."""
        assert model.bundle is not None  # it answered before
        try:
            model.serve(await self._open(model, *model.bundle))
        except EdgekitError as error:
            self._note_failure(model, error)

    def _note_failure(self, model: Model, error: EdgekitError) -> None:
        log.error("%s cannot be loaded again: %s", model.name, error)
        model.failed_at, model.failure = self._clock(), str(error)

    async def _unload(self, model: Model) -> None:
        """Free a model after the requests that waited for its load; otherwise they might wait for ever."""
        while model.waiting and model.session is not None:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)
        session = model.release()
        if session is not None:
            await self._close(session)

    async def _close(self, session: Session) -> None:
        await session.close()
        await asyncio.to_thread(return_freed_memory)
        self._budget.settle()
