"""The models of one server: who is loaded, who waits outside, and how one bundle takes the place of another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from edgekit.bundle.manifest import Manifest
from edgekit.errors import EdgekitError, NotFoundError, RuntimeLoadError
from edgekit.serving.models.load_progress import LoadListener, told
from edgekit.serving.models.memory_growth import Grown, MemoryNotifier, note_all, note_workers
from edgekit.serving.models.memory_plan import LoadedModel, MemoryBudgetError, estimate_bytes, plan
from edgekit.serving.models.model import RETRY_LOAD_SECONDS, Model
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.memory_usage import Footprints, MemoryFootprints, return_freed_memory, rss_bytes
from edgekit.serving.session.queue import DeadlineError, OverloadedError
from edgekit.serving.session.session import Load, Session
from edgekit.waiting import within

log = logging.getLogger(__name__)

Check = Callable[[Session], Awaitable[object]]

_POLL_SECONDS = 0.05


class ModelManager:
    """Loads models within a memory budget. All calls are made on one event loop.

    What a model holds is measured when it is loaded, as the growth of this process, or told by a runtime that is a
    process of its own (its `memory_bytes`); before its first load it is estimated.

    Args:
        load: Opens a bundle's runtime.
        options: How each model is served.
        budget_bytes: For all models together; 0 for no limit.
        footprints: What was measured before.
        prepare: Called before the first load of a bundle, so that a runtime's library does not count as the model's.
        clock: Monotonic seconds.
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
        self._load, self._options, self._clock = load, options, clock
        self._budget = budget_bytes
        self._footprints = footprints or MemoryFootprints()
        self._prepare = prepare
        self.listener: LoadListener | None = None  # told of loads that take long
        self._models: dict[str, Model] = {}
        self._news, self._settled_bytes = MemoryNotifier(), 0  # the latter after the last change of what is loaded
        self._planning = asyncio.Lock()  # who goes and who comes is decided one at a time
        self._measuring = asyncio.Lock()  # the growth of the process must be one model's

    def get(self, name: str) -> Model | None:
        """What is kept of a name."""
        return self._models.get(name)

    def all(self) -> dict[str, Model]:
        """Every name that was ever activated, in that order."""
        return self._models

    async def close(self) -> None:
        """Finish what was asked and free every model."""
        for name in list(self._models):
            await self.deactivate(name)

    # --- bundles

    async def activate(self, name: str, manifest: Manifest, folder: Path, *, check: Check | None = None) -> None:
        """Load and warm a bundle and answer with it; see `ModelOptions.swap` for the order.

        Args:
            name: That is asked for.
            manifest, folder: The bundle.
            check: Asks the loaded model something before anyone else may.

        Raises:
            MemoryBudgetError: it does not fit.
            Whatever the load or `check` raises. In each case the bundle before it keeps answering.
        """
        model = self._models.setdefault(name, Model(name, self._options(name)))
        async with model.switching:
            old = model.session
            first = await self._make_room(model, manifest)
            if not first and old is not None:
                await self._unload(model)  # from now on requests wait, until the end of `switching`
            try:
                new = await self._open(model, manifest, folder, check)
            except BaseException:
                if not first and old is not None:
                    await self._restore(model)
                raise
            model.bundle = manifest, folder
            model.release()
            model.session = model.last = new
            model.counters["swaps"] += 1
            if first and old is not None:
                await self._close(old)

    async def deactivate(self, name: str) -> None:
        """Forget a model's bundle; what was asked before is answered. No error where there is none."""
        model = self._models.get(name)
        if model is None:
            return
        async with model.switching:
            model.bundle, session = None, model.release()
            model.bytes = 0
            if session is not None:
                await self._close(session)

    # --- asking

    def present(self, name: str) -> Session | None:
        """The session of a model that is in memory, which is used by this; use it before the next await."""
        model = self._models.get(name)
        if model is None or model.session is None:
            return None
        model.used_at = self._clock()
        return model.session

    async def acquire(self, name: str, deadline: float | None = None) -> Session:
        """The session of a model, loaded first where it was put out; use it before the next await.

        Args:
            name: Of a model with a bundle.
            deadline: In seconds of the clock.

        Raises:
            NotFoundError: there is no bundle.
            OverloadedError: too many wait for it already.
            DeadlineError: it was not loaded in time.
            RuntimeLoadError: it could not be loaded.
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
        """Bring a model back that was put out; returns without it where nobody waits for it any more."""
        while model.waiting:
            async with model.switching:
                if model.session is not None or model.bundle is None:
                    return
                manifest, folder = model.bundle
                try:
                    wait_until = await self._reserve(model, manifest, urgent=False)
                    if wait_until is None:
                        model.session = model.last = await self._open(model, manifest, folder)
                        return
                except EdgekitError as error:
                    log.error("%s cannot be loaded again: %s", model.name, error)
                    model.failed_at, model.failure = self._clock(), str(error)
                    return
            await asyncio.sleep(_POLL_SECONDS)  # who has just come stays for a while

    # --- memory

    async def _make_room(self, model: Model, manifest: Manifest) -> bool:
        """Reserve memory for a new bundle; True where the old one may stay until the new one is there."""
        swap = model.options.swap
        if swap == "unload-first" and model.session is not None:
            await self._reserve(model, manifest, urgent=True)
            return False
        if swap == "auto" and model.session is not None and not self._has_room(model, manifest):
            await self._reserve(model, manifest, urgent=True)
            return False
        await self._reserve(model, manifest, urgent=True, beside=True)
        return True

    def _has_room(self, model: Model, manifest: Manifest) -> bool:
        others = sum(one.bytes for one in self._others(model, beside=True))
        return not self._budget or self._expected(model, manifest) <= self._budget - others

    async def _reserve(self, model: Model, manifest: Manifest, *, urgent: bool, beside: bool = False) -> float | None:
        """Put out who must go, and hold their place; or the time at which to try again.

        Args:
            model: Who wants in.
            manifest: Of its bundle to be.
            urgent: As `plan`.
            beside: Its present bundle stays.
        """
        wanted = self._expected(model, manifest)
        while True:
            async with self._planning:
                if self._budget:
                    await note_workers(self._models.values())
                others = self._others(model, beside=beside)
                try:
                    found = plan(model.name, wanted, others, budget=self._budget, now=self._clock(), urgent=urgent)
                except MemoryBudgetError:
                    if not any(one.reserved for one in self._models.values()):
                        raise
                else:
                    if found.wait_until is not None:
                        return found.wait_until
                    await self._evict(found.evict)
                    model.reserved = wanted
                    return None
            await asyncio.sleep(_POLL_SECONDS)  # somebody else is being loaded

    async def grown(self) -> list[Grown]:
        """Who holds far more than when it was loaded, each told once; what they hold now is what is planned by."""
        return self._news.look(await note_all(self._models, self._settled_bytes))

    def _expected(self, model: Model, manifest: Manifest) -> int:
        kept = self._footprints.get(manifest.digest)
        return model.options.instances * (estimate_bytes(manifest) if kept is None else kept)

    def _others(self, model: Model, *, beside: bool) -> list[LoadedModel]:
        found = []
        for one in self._models.values():
            if one.session is not None and (one is not model or beside):
                found.append(
                    LoadedModel(
                        name=one.name,
                        bytes=one.bytes,
                        pinned=one.options.pinned or one is model,
                        used_at=one.used_at,
                        loaded_at=one.loaded_at,
                        load_seconds=one.load_seconds,
                    )
                )
            if one.reserved and one is not model:
                found.append(LoadedModel(name=one.name, bytes=one.reserved, pinned=True))
        return found

    async def _evict(self, names: Sequence[str]) -> None:
        for model in map(self._models.__getitem__, names):
            if model.session is not None:
                log.info("%s is put out of memory (%.1f MiB)", model.name, model.bytes / 2**20)
                model.counters["evictions"] += 1
                await self._unload(model)

    async def _unload(self, model: Model) -> None:
        """Free a model; requests that waited for it get their turn first, or they might wait for ever."""
        while model.waiting and model.session is not None:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)
        session = model.release()
        if session is not None:
            await self._close(session)

    # --- loading

    async def _open(self, model: Model, manifest: Manifest, folder: Path, check: Check | None = None) -> Session:
        """Load and warm a bundle, and note what it holds."""
        started = self._clock()
        try:
            if self._prepare is not None:
                await asyncio.to_thread(self._prepare, manifest)
            async with told(model.name, self.listener, self._clock), self._measuring:
                before = await asyncio.to_thread(rss_bytes)
                session = await Session.open(
                    manifest,
                    folder,
                    self._load,
                    queue_limit=model.options.queue_limit,
                    instances=model.options.instances,
                    clock=self._clock,
                )
                try:
                    await session.warm()
                    if check is not None:
                        await check(session)
                    await self._choose_batch(model, session)
                    size = await self._measure(model, session, before)
                except BaseException:
                    await self._close(session)
                    raise
        finally:
            model.reserved = 0
        if model.last is not None and model.last.digest == session.digest:
            session.statistics = model.last.statistics  # it was only out for a while
        model.counters["loads"] += 1
        model.bytes = model.loaded_bytes = size
        self._settled_bytes = rss_bytes()
        model.loaded_at = model.used_at = self._clock()
        model.load_seconds = model.loaded_at - started
        model.failed_at = model.loaded_at - RETRY_LOAD_SECONDS
        return session

    async def _choose_batch(self, model: Model, session: Session) -> None:
        """Join requests as the options say, or as was measured; once for each bundle."""
        if model.options.batch != "auto":
            session.batch_rows = model.options.batch
        elif model.last is not None and model.last.digest == session.digest:
            session.batch_rows = model.last.batch_rows
        else:
            await session.calibrate()

    async def _measure(self, model: Model, session: Session, before: int) -> int:
        """What a session holds; notes it, and puts others out where it is more than was expected."""
        told = await asyncio.to_thread(session.memory_bytes)
        grown = told if told is not None else await asyncio.to_thread(rss_bytes) - before
        digest, copies = session.digest, model.options.instances
        # Memory that the process had freed and not given back hides a part, so the most that was ever seen counts.
        least = 0 if told is not None else session.manifest.file("model").size
        each = max(-(-grown // copies), least, self._footprints.get(digest) or 0)
        await asyncio.to_thread(self._footprints.put, digest, each)
        async with self._planning:
            # Those that are being loaded judge for themselves when they have been measured.
            others = [one for one in self._others(model, beside=False) if self._models[one.name].session is not None]
            found = plan(model.name, each * copies, others, budget=self._budget, now=self._clock(), urgent=True)
            await self._evict(found.evict)
        return each * copies

    async def _restore(self, model: Model) -> None:
        """Bring the bundle back that was unloaded for one that could not be loaded."""
        assert model.bundle is not None  # it answered
        try:
            model.session = model.last = await self._open(model, *model.bundle)
        except EdgekitError as error:
            log.error("%s cannot be loaded again: %s", model.name, error)
            model.failed_at, model.failure = self._clock(), str(error)

    async def _close(self, session: Session) -> None:
        await session.close()
        await asyncio.to_thread(return_freed_memory)
        self._settled_bytes = rss_bytes()
