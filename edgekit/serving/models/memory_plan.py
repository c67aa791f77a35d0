"""Which models may be in memory together. Rules only; sizes are bytes, times monotonic seconds."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgekit.bundle.manifest import ROLE_MODEL, Manifest
from edgekit.errors import RuntimeLoadError

MIB = 2**20
SETTLE_SECONDS = 5.0
LOADING_SHARE = 0.1  # of the time, at most, is spent on loading when models push one another out
_BYTES_OF_FILE, _BYTES_BESIDE = 2, 4 * MIB  # weights as they lie and as the runtime packs them; its own structures


class MemoryBudgetError(RuntimeLoadError):
    """A model does not fit into the memory budget, whatever else is put out."""


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory.

    Attributes:
        name: Its name.
        bytes: What it holds.
        pinned: It is never put out.
        used_at: When it was last asked.
        loaded_at, load_seconds: When it was loaded, and how long that took.
    """

    name: str
    bytes: int
    pinned: bool = False
    used_at: float = 0.0
    loaded_at: float = 0.0
    load_seconds: float = 0.0

    @property
    def settled_at(self) -> float:
        """Before this it is not put out: two models that push each other out would do nothing else."""
        return self.loaded_at + max(SETTLE_SECONDS, self.load_seconds / LOADING_SHARE)


class Plan(msgspec.Struct, frozen=True):
    """How a model gets its memory.

    Attributes:
        evict: Who goes for it, the longest unused first.
        wait_until: When to ask again; None where it can be loaded now.
    """

    evict: tuple[str, ...] = ()
    wait_until: float | None = None


def estimate_bytes(manifest: Manifest) -> int:
    """What a model is taken to need before it was ever loaded here, from the size of its artifact."""
    return _BYTES_OF_FILE * manifest.file(ROLE_MODEL).size + _BYTES_BESIDE


def plan(
    name: str, wanted: int, residents: Sequence[Resident], *, budget: int, now: float, urgent: bool = False
) -> Plan:
    """Who must go so that `name` fits.

    Args:
        name: Who wants in.
        wanted: Bytes that it needs.
        residents: Everybody else who holds memory; those that cannot go are pinned.
        budget: For all together; 0 for no limit.
        now: The time.
        urgent: Put out even who has only just come; for updates, which are rare.

    Raises:
        MemoryBudgetError: it does not fit beside those that are pinned.
    """
    if not budget:
        return Plan()
    pinned = sum(one.bytes for one in residents if one.pinned)
    if wanted > budget - pinned:
        raise MemoryBudgetError(
            f"model {name} needs {wanted / MIB:.1f} MiB, the budget is {budget / MIB:.1f} MiB and "
            f"{pinned / MIB:.1f} MiB of it cannot be freed",
            advice="Raise memory_budget_mib, pin fewer models, or swap this one with unload-first.",
        )
    missing = wanted - (budget - sum(one.bytes for one in residents))
    movable = [one for one in residents if not one.pinned]
    settled = [one for one in movable if urgent or one.settled_at <= now]
    if missing <= sum(one.bytes for one in settled):
        return Plan(_enough(sorted(settled, key=lambda one: one.used_at), missing))
    soon = sorted(movable, key=lambda one: one.settled_at)
    return Plan(wait_until=next(one.settled_at for one in soon if _settled_by(movable, one.settled_at) >= missing))


def _enough(order: Sequence[Resident], missing: int) -> tuple[str, ...]:
    chosen = []
    for one in order:
        if missing <= 0:
            break
        chosen.append(one.name)
        missing -= one.bytes
    return tuple(chosen)


def _settled_by(residents: Sequence[Resident], time: float) -> int:
    return sum(one.bytes for one in residents if one.settled_at <= time)
