"""Reports of models whose memory grows long after their load. Later memory plans use the grown sizes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from edgekit.serving.models.memory_plan import MIB
from edgekit.serving.session.memory_usage import rss_bytes

if TYPE_CHECKING:
    from edgekit.serving.models.model import Model

# Growth up to this is normal: requests differ, and allocators keep freed memory.
FAR, LEAST_BYTES = 1.5, 32 * MIB
PROCESS = ""  # in place of a model's name: this process, with all models that run in it


class MemorySize(NamedTuple):
    """Memory of a model, or of this process.

    Attributes:
        loaded_bytes: Bytes after the load.
        bytes: Bytes now.
        load: Number of the load, so that each load is reported at most once.
    """

    loaded_bytes: int
    bytes: int
    load: int

    @property
    def is_far(self) -> bool:
        """True where it is far more than after the load."""
        return self.bytes > max(FAR * self.loaded_bytes, self.loaded_bytes + LEAST_BYTES)


class Grown(NamedTuple):
    """A report of grown memory in bytes; `model` is empty for this process."""

    model: str
    loaded_bytes: int
    bytes: int


class GrowthNotifier:
    """Decides which growth is reported. Rules only.

    Growth is reported when it is far in two measurements in a row, because a burst passes, and once for each load.
    """

    def __init__(self) -> None:
        self._far: dict[str, int] = {}  # load that was far over in the last measurement, by model
        self._reported: dict[str, int] = {}

    def check(self, sizes: Mapping[str, MemorySize]) -> list[Grown]:
        """The growth to report now.

        Args:
            sizes: Memory by model, and of PROCESS.
        """
        reports = []
        for name, one in sizes.items():
            if one.is_far and self._far.get(name) == one.load and self._reported.get(name) != one.load:
                self._reported[name] = one.load
                reports.append(Grown(name, one.loaded_bytes, one.bytes))
        self._far = {name: one.load for name, one in sizes.items() if one.is_far}
        return reports


async def measure_workers(models: Iterable[Model]) -> dict[str, MemorySize]:
    """Measure models in processes of their own, and note their sizes in them."""
    sizes = {}
    for model in list(models):
        size = await asyncio.to_thread(model.session.memory_bytes) if model.session is not None else None
        if size:
            model.bytes = size
            sizes[model.name] = MemorySize(model.loaded_bytes, size, model.counters["loads"])
    return sizes


async def measure_all(models: Mapping[str, Model], settled_bytes: int) -> dict[str, MemorySize]:
    """Measure as `measure_workers`, and this process where models run in it.

    Growth of this process is noted in its model where only one model runs in it.

    Args:
        models: All models by name.
        settled_bytes: Memory of this process after the last load or unload.
    """
    sizes = await measure_workers(models.values())
    inside = [one for name, one in models.items() if one.session is not None and name not in sizes]
    if inside:
        load = sum(one.counters["loads"] for one in models.values())
        sizes[PROCESS] = process = MemorySize(settled_bytes, rss_bytes(), load)
        if len(inside) == 1 and process.is_far:  # with several models it is unknown which one has grown
            inside[0].bytes = inside[0].loaded_bytes + process.bytes - settled_bytes
    return sizes


def growth_text(grown: Grown) -> str:
    """A report as a sentence."""
    name = f"model {grown.model}" if grown.model else "the agent"
    return f"{name} holds {grown.bytes / MIB:.0f} MiB, {grown.loaded_bytes / MIB:.0f} MiB after it was loaded"
