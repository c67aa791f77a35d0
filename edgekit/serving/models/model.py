"""The state of one model name: its bundle, its session and its counters."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from edgekit.bundle.manifest import Manifest
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.session import Session

RETRY_LOAD_SECONDS = 10.0


class Model:
    """What is kept of one model name.

    Attributes:
        bundle: Its manifest and folder; None where there is none.
        session: What answers now; None while it is not in memory. Use it before the next await.
        bytes: What it holds in memory, or held when it was last loaded.
        loaded_bytes: What it was measured to hold when it was loaded.
        counters: `swaps`, `loads`, `evictions`.
    """

    def __init__(self, name: str, options: ModelOptions) -> None:
        self.name, self.options = name, options
        self.bundle: tuple[Manifest, Path] | None = None
        self.session: Session | None = None
        self.last: Session | None = None  # what described it last; closed when it is not `session`
        self.switching = asyncio.Lock()
        self.counters: Counter[str] = Counter(swaps=0, loads=0, evictions=0)
        self._crashes = 0  # of sessions before the present one
        self.bytes = self.loaded_bytes = 0
        self.reserved = 0  # bytes, while it is being loaded
        self.waiting = 0  # requests outside, for it to be loaded
        self.used_at = self.loaded_at = self.load_seconds = 0.0
        self.loading: asyncio.Task[None] | None = None
        self.failed_at = -RETRY_LOAD_SECONDS
        self.failure = ""

    @property
    def crashes(self) -> int:
        """How often a process that ran this model was lost, whichever bundle it ran."""
        return self._crashes + (self.session.crashes if self.session is not None else 0)

    def release(self) -> Session | None:
        """Take away what answers now, for whoever closes it."""
        session, self.session = self.session, None
        self._crashes += session.crashes if session is not None else 0
        return session

    @property
    def is_first_load(self) -> bool:
        """It is being loaded and has never answered."""
        return self.bundle is None and self.switching.locked()
