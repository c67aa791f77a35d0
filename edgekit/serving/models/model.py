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
    """The state of one model name.

    Attributes:
        name, options: Name, and how it is served.
        aside: True for a bundle beside the active one that answers no request.
        bundle: Manifest and folder of the bundle; None where there is none.
        session: Answers requests; None while the model is unloaded. Use it before the next await.
        last: The last session, which describes an unloaded model; closed where it is not `session`.
        switching: Locked while the model is loaded, switched or removed.
        counters: `swaps`, `loads`, `evictions`.
        bytes: Memory of the loaded model, or of its last load.
        loaded_bytes: Memory measured at the load.
        reserved: Bytes that are reserved for it while it is being loaded.
        waiting: Requests that wait for its load.
        used_at, loaded_at, load_seconds: Times of the last request and of the last load, and the duration of the load,
            in seconds of the manager's clock.
        loading: Task that loads it again.
        failed_at, failure: Time and message of the last failed load.
    """

    def __init__(self, name: str, options: ModelOptions, *, aside: bool = False) -> None:
        self.name, self.options, self.aside = name, options, aside
        self.bundle: tuple[Manifest, Path] | None = None
        self.session: Session | None = None
        self.last: Session | None = None
        self.switching = asyncio.Lock()
        self.counters: Counter[str] = Counter(swaps=0, loads=0, evictions=0)
        self._crashes = 0  # of earlier sessions
        self.bytes = self.loaded_bytes = 0
        self.reserved = 0
        self.waiting = 0
        self.used_at = self.loaded_at = self.load_seconds = 0.0
        self.loading: asyncio.Task[None] | None = None
        self.failed_at = -RETRY_LOAD_SECONDS
        self.failure = ""

    @property
    def crashes(self) -> int:
        """Number of crashes of this model's worker processes, over all its bundles."""
        return self._crashes + (self.session.crashes if self.session is not None else 0)

    def serve(self, session: Session) -> None:
        """Let a session answer; the streams of the one before it have ended."""
        if session.streams is not None and self.last is not None and self.last.streams is not None:
            session.streams.follow(self.last.streams)
        self.session = self.last = session

    def release(self) -> Session | None:
        """Remove and return the session, which the caller closes."""
        session, self.session = self.session, None
        self._crashes += session.crashes if session is not None else 0
        return session

    @property
    def is_first_load(self) -> bool:
        """True while the model is loaded for the first time."""
        return self.bundle is None and self.switching.locked()
