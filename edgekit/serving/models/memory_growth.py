"""Word of memory that grows long after a load: what is measured then is what everything else is planned by."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from edgekit.serving.models.memory_plan import MIB
from edgekit.serving.session.memory_usage import rss_bytes

if TYPE_CHECKING:
    from edgekit.serving.models.model import Model

FAR, LEAST_BYTES = 1.5, 32 * MIB  # above what was measured: requests that differ, and what allocators keep, need some
PROCESS = ""  # this process, with all models that run in it


class Held(NamedTuple):
    """What a model, or this process, held when it was loaded, and holds now, in bytes; and which load that was."""

    loaded_bytes: int
    bytes: int
    load: int

    @property
    def is_far(self) -> bool:
        """It is far more than it was."""
        return self.bytes > max(FAR * self.loaded_bytes, self.loaded_bytes + LEAST_BYTES)


class Grown(NamedTuple):
    """What is to be told: who holds how much, in bytes; `model` is empty for the process."""

    model: str
    loaded_bytes: int
    bytes: int


class MemoryNotifier:
    """Decides what is told. Rules only: what was far over in two looks in a row, for a burst passes; once a load."""

    def __init__(self) -> None:
        self._far: dict[str, int] = {}  # which load was far over in the last look
        self._told: dict[str, int] = {}

    def look(self, held: Mapping[str, Held]) -> list[Grown]:
        """What is to be told now.

        Args:
            held: By model, all that can be told apart, and PROCESS.
        """
        news = []
        for name, one in held.items():
            if one.is_far and self._far.get(name) == one.load and self._told.get(name) != one.load:
                self._told[name] = one.load
                news.append(Grown(name, one.loaded_bytes, one.bytes))
        self._far = {name: one.load for name, one in held.items() if one.is_far}
        return news


async def note_workers(models: Iterable[Model]) -> dict[str, Held]:
    """What models in processes of their own hold by now; notes it in them, for whoever plans by it."""
    found = {}
    for model in list(models):
        told = await asyncio.to_thread(model.session.memory_bytes) if model.session is not None else None
        if told:
            model.bytes = told
            found[model.name] = Held(model.loaded_bytes, told, model.counters["loads"])
    return found


async def note_all(models: Mapping[str, Model], settled_bytes: int) -> dict[str, Held]:
    """As `note_workers`, and PROCESS, where models run in it; what it has grown by is noted in them if there is one.

    Args:
        models: By name.
        settled_bytes: What this process held after the last load.
    """
    found = await note_workers(models.values())
    inside = [one for name, one in models.items() if one.session is not None and name not in found]
    if inside:
        load = sum(one.counters["loads"] for one in models.values())
        found[PROCESS] = process = Held(settled_bytes, rss_bytes(), load)
        if len(inside) == 1 and process.is_far:  # of several nobody knows which
            inside[0].bytes = inside[0].loaded_bytes + process.bytes - settled_bytes
    return found


def told_text(grown: Grown) -> str:
    """For people."""
    who = f"model {grown.model}" if grown.model else "the agent"
    return f"{who} holds {grown.bytes / MIB:.0f} MiB, {grown.loaded_bytes / MIB:.0f} MiB after it was loaded"
