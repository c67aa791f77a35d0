"""Rules for which models are in memory together. Sizes are in bytes, times in monotonic seconds."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgekit.bundle.manifest import ROLE_MODEL, Manifest
from edgekit.errors import RuntimeLoadError

MIB = 2**20
SETTLE_SECONDS = 5.0
LOADING_SHARE = 0.1  # largest share of the time that is spent on loads when models evict one another
_BYTES_PER_FILE_BYTE = 2  # weights in the file's form and in the runtime's packed form
_FIXED_BYTES = 4 * MIB  # the runtime's own structures


class MemoryBudgetError(RuntimeLoadError):
    """A model does not fit into the memory budget, even if all models that may be unloaded are."""


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory.

    Attributes:
        name: Name of the model.
        bytes: Memory that it holds.
        pinned: True where it is never unloaded.
        used_at: Time of its last request.
        loaded_at, load_seconds: Time and duration of its load.
    """

    name: str
    bytes: int
    pinned: bool = False
    used_at: float = 0.0
    loaded_at: float = 0.0
    load_seconds: float = 0.0

    @property
    def settled_at(self) -> float:
        """Time before which it is not unloaded, so that two models do not evict each other all the time."""
        return self.loaded_at + max(SETTLE_SECONDS, self.load_seconds / LOADING_SHARE)


class MemoryPlan(msgspec.Struct, frozen=True):
    """How a model gets its memory.

    Attributes:
        evict: Models to unload first, the longest unused one at the front.
        wait_until: Time from which on to plan again; None where the model can be loaded now.
    """

    evict: tuple[str, ...] = ()
    wait_until: float | None = None


def estimate_bytes(manifest: Manifest) -> int:
    """Estimated memory of a model that was never loaded on this device, from the size of its artifact."""
    return _BYTES_PER_FILE_BYTE * manifest.file(ROLE_MODEL).size + _FIXED_BYTES


def plan(
    name: str, wanted: int, others: Sequence[LoadedModel], *, budget: int, now: float, urgent: bool = False
) -> MemoryPlan:
    """Plan which models are unloaded so that `name` fits.

    Args:
        name: Name of the model to load.
        wanted: Bytes that it needs.
        others: All other models that hold memory; pinned where they cannot be unloaded.
        budget: Bytes for all models together; 0 for no limit.
        now: The time.
        urgent: Also unload models before their `settled_at`; for updates, which are rare.

    Raises:
        MemoryBudgetError: the model does not fit beside the pinned ones.
    """
    if not budget:
        return MemoryPlan()
    pinned = sum(one.bytes for one in others if one.pinned)
    if wanted > budget - pinned:
        raise MemoryBudgetError(
            f"model {name} needs {wanted / MIB:.1f} MiB, the budget is {budget / MIB:.1f} MiB and "
            f"{pinned / MIB:.1f} MiB of it cannot be freed",
            advice="Raise memory_budget_mib, pin fewer models, or swap this one with unload-first.",
        )
    missing = wanted - (budget - sum(one.bytes for one in others))
    evictable = [one for one in others if not one.pinned]
    settled = [one for one in evictable if urgent or one.settled_at <= now]
    if missing <= sum(one.bytes for one in settled):
        return MemoryPlan(_first_enough(sorted(settled, key=lambda one: one.used_at), missing))
    soon = sorted(evictable, key=lambda one: one.settled_at)
    return MemoryPlan(
        wait_until=next(one.settled_at for one in soon if _settled_bytes(evictable, one.settled_at) >= missing)
    )


def _first_enough(order: Sequence[LoadedModel], missing: int) -> tuple[str, ...]:
    """Names of the first models that together hold at least `missing` bytes."""
    chosen = []
    for one in order:
        if missing <= 0:
            break
        chosen.append(one.name)
        missing -= one.bytes
    return tuple(chosen)


def _settled_bytes(models: Sequence[LoadedModel], time: float) -> int:
    return sum(one.bytes for one in models if one.settled_at <= time)
