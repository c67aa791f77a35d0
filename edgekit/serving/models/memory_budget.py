"""The memory budget of a server's models: expected and measured sizes, reservations and evictions.

`memory_plan` has the rules. This file applies them to the models of a `ModelManager`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from edgekit.bundle.manifest import ROLE_MODEL, Manifest
from edgekit.serving.models.memory_growth import Grown, GrowthNotifier, measure_all, measure_workers
from edgekit.serving.models.memory_plan import LoadedModel, MemoryBudgetError, estimate_bytes, plan
from edgekit.serving.models.model import Model
from edgekit.serving.session.memory_usage import Footprints, rss_bytes
from edgekit.serving.session.session import Session

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # between two attempts to reserve memory


class MemoryBudget:
    """Reserves memory for models before they are loaded, and unloads others to make room.

    Args:
        models: All models of the server by name, and the bundles that are loaded aside.
        unload: Unloads a model.
        budget_bytes: For all models together; 0 for no limit.
        footprints: Measurements of earlier loads.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        unload: Callable[[Model], Awaitable[None]],
        *,
        budget_bytes: int,
        footprints: Footprints,
        clock: Callable[[], float],
    ) -> None:
        self._models, self._unload, self._clock = models, unload, clock
        self._budget_bytes, self._footprints = budget_bytes, footprints
        self._notifier = GrowthNotifier()
        self._settled_bytes = 0
        self._planning = asyncio.Lock()  # one plan is made and carried out at a time

    def settle(self) -> None:
        """Note the memory of this process after a model was loaded or unloaded."""
        self._settled_bytes = rss_bytes()

    async def make_room(self, model: Model, manifest: Manifest) -> bool:
        """Reserve memory for a model's new bundle.

        Returns:
            True where the old bundle may stay loaded until the new one is loaded.

        Raises:
            MemoryBudgetError: the new bundle does not fit.
        """
        swap = model.options.swap
        if swap == "unload-first" and model.session is not None:
            await self.reserve(model, manifest, urgent=True)
            return False
        if swap == "auto" and model.session is not None and not self._fits_beside(model, manifest):
            await self.reserve(model, manifest, urgent=True)
            return False
        await self.reserve(model, manifest, urgent=True, keep_old=True)
        return True

    async def reserve_aside(self, model: Model, aside: Model, manifest: Manifest) -> None:
        """Reserve memory for a bundle beside the active one of `model`; no model is unloaded for it.

        Raises:
            MemoryBudgetError: they do not fit together, or `swap` says that the model's bundles never do.
        """
        async with self._planning:
            if self._budget_bytes:
                await measure_workers(self._models.values())
            if model.options.swap == "unload-first":
                raise MemoryBudgetError(f"two bundles of model {model.name} are never loaded together (unload-first)")
            if not self._fits_beside(aside, manifest):
                raise MemoryBudgetError(f"two bundles of model {model.name} do not fit into the memory budget")
            aside.reserved = self._expected_bytes(aside, manifest)

    async def reserve(self, model: Model, manifest: Manifest, *, urgent: bool, keep_old: bool = False) -> float | None:
        """Unload models where needed, and reserve the memory of a bundle until it is loaded.

        Args:
            model: The model to load.
            manifest: Its bundle.
            urgent: As in `plan`.
            keep_old: The model's present bundle stays loaded.

        Returns:
            None when the memory is reserved; else the time from which on to try again.

        Raises:
            MemoryBudgetError: the bundle does not fit.
        """
        wanted = self._expected_bytes(model, manifest)
        while True:
            async with self._planning:
                if self._budget_bytes:
                    await measure_workers(self._models.values())
                others = self._others(model, keep_old=keep_old)
                try:
                    memory_plan = plan(
                        model.name, wanted, others, budget=self._budget_bytes, now=self._clock(), urgent=urgent
                    )
                except MemoryBudgetError:
                    if not any(one.reserved for one in self._models.values()):
                        raise
                else:
                    if memory_plan.wait_until is not None:
                        return memory_plan.wait_until
                    await self._evict(memory_plan.evict)
                    model.reserved = wanted
                    return None
            await asyncio.sleep(POLL_SECONDS)  # until the models that are being loaded are measured

    async def record(self, model: Model, session: Session, before: int) -> int:
        """Measure a model that was just loaded, and unload others where it holds more than was expected.

        Args:
            model: The loaded model.
            session: Its session.
            before: Memory of this process before the load, in bytes.

        Returns:
            Bytes that the model holds.
        """
        own_process = await asyncio.to_thread(session.memory_bytes)
        grown = own_process if own_process is not None else await asyncio.to_thread(rss_bytes) - before
        digest, copies = session.digest, model.options.instances
        # A model may reuse memory that the process had freed before, so the largest measurement counts, and in this
        # process at least the size of the artifact.
        least = 0 if own_process is not None else session.manifest.file(ROLE_MODEL).size
        each = max(-(-grown // copies), least, self._footprints.get(digest) or 0)
        if not model.aside:  # a process of its own has another size than the model where it will answer
            await asyncio.to_thread(self._footprints.put, digest, each)
        async with self._planning:
            # Models that are being loaded are left out: they are measured and recorded themselves.
            loaded = [one for one in self._others(model) if self._models[one.name].session is not None]
            if model.aside:
                loaded = [msgspec.structs.replace(one, pinned=True) for one in loaded]
            memory_plan = plan(
                model.name, each * copies, loaded, budget=self._budget_bytes, now=self._clock(), urgent=True
            )
            await self._evict(memory_plan.evict)
        return each * copies

    async def grown(self) -> list[Grown]:
        """Models that hold far more memory than after their load, each reported once per load.

        The present sizes are noted in the models, and later plans use them.
        """
        return self._notifier.check(await measure_all(self._models, self._settled_bytes))

    def _fits_beside(self, model: Model, manifest: Manifest) -> bool:
        others = sum(one.bytes for one in self._others(model, keep_old=True))
        return not self._budget_bytes or self._expected_bytes(model, manifest) <= self._budget_bytes - others

    def _expected_bytes(self, model: Model, manifest: Manifest) -> int:
        measured = self._footprints.get(manifest.digest)
        return model.options.instances * (estimate_bytes(manifest) if measured is None else measured)

    def _others(self, model: Model, *, keep_old: bool = False) -> list[LoadedModel]:
        """All memory that other models hold or have reserved; with `keep_old` the model's present bundle too."""
        others = []
        for one in self._models.values():
            if one.session is not None and (one is not model or keep_old):
                others.append(
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
                others.append(LoadedModel(name=one.name, bytes=one.reserved, pinned=True))
        return others

    async def _evict(self, names: Sequence[str]) -> None:
        for model in map(self._models.__getitem__, names):
            if model.session is not None:
                log.info("%s is unloaded to make room (%.1f MiB)", model.name, model.bytes / 2**20)
                model.counters["evictions"] += 1
                await self._unload(model)
