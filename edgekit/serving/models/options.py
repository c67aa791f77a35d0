"""How one model is served: choices as data."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Isolation = Literal["auto", "thread", "process"]
Batch = Annotated[int, msgspec.Meta(ge=1, le=1024)] | Literal["auto"]
Swap = Literal["auto", "load-first", "unload-first"]


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How one model is served.

    Attributes:
        queue_limit: Most requests that may wait or run.
        instances: Copies, which run side by side; each costs its memory.
        pinned: It stays in memory whatever the budget.
        swap: ``load-first`` holds the old and the new bundle for a moment and never makes a request wait;
            ``unload-first`` holds one, and requests wait while the new one is loaded; ``auto`` is the first where
            the memory budget has room for both without putting another model out, else the second.
        isolation: ``process`` runs it in a process of its own, which may crash, hang and leak without harm to the
            agent, for its memory (an interpreter and the runtime's library) and some 0.1 ms a request; ``thread`` in
            the agent's; ``auto`` is the former on GPUs (CUDA, TensorRT), else the latter.
        batch: Rows of waiting requests that are joined in one run at most: a number (1 for never), or ``auto``, which
            measures at load whether the model gains by it, for artifacts that take any number of rows.
        run_timeout_seconds: A process of its own is ended when one run takes longer.
    """

    queue_limit: Annotated[int, msgspec.Meta(ge=1)] = 64
    instances: Annotated[int, msgspec.Meta(ge=1)] = 1
    pinned: bool = False
    swap: Swap = "auto"
    isolation: Isolation = "auto"
    batch: Batch = "auto"
    run_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[models.NAME]`` of ``agent.toml``: what is different for one model; as ModelOptions."""

    queue_limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    instances: Annotated[int, msgspec.Meta(ge=1)] | None = None
    pinned: bool | None = None
    swap: Swap | None = None
    isolation: Isolation | None = None
    batch: Batch | None = None
    run_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None

    def over(self, options: ModelOptions) -> ModelOptions:
        """`options` with what is set here in its place."""
        changed = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(options, **changed)
