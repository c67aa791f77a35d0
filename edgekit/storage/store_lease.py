"""One writer at a time on an object store, by writes that only succeed while an object is what was read before.

The lease is one object: whose turn it is, or nothing. Its holder writes it once; a waiter that has seen it unchanged
for `LEASE_SECONDS` takes it over, so a holder that died blocks nobody for longer, and no clocks are compared. A holder
that was only slow notices at its next conditional write.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from edgekit.errors import UnavailableError

log = logging.getLogger(__name__)

LEASE_NAME = "metadata/lease"
LEASE_SECONDS = 30.0
_POLL_SECONDS = 0.2


class ConflictError(UnavailableError):
    """An object is not what it was when it was read."""


class UnconditionalError(Exception):
    """The store knows no conditional writes."""


class Tagged(Protocol):
    """What the lease needs of a store."""

    def get_tagged(self, name: str) -> tuple[bytes, str] | None:
        """The object and its tag; None where there is none."""
        ...

    def put_tagged(self, name: str, data: bytes, tag: str | None) -> str:
        """Write while the object has `tag` (None: is absent); its new tag. Raises ConflictError, UnconditionalError."""
        ...


class Lease:
    """The turn of one writer.

    Args:
        store: Where.
        label: How messages call it.
        seconds: After so long without a change it is taken from its holder.
    """

    def __init__(self, store: Tagged, label: str, *, seconds: float = LEASE_SECONDS) -> None:
        self._store, self._label, self._seconds = store, label, seconds
        self._tag: str | None = None

    @contextlib.contextmanager
    def hold(self, timeout_seconds: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """Wait for the turn, and give it back in the end.

        Raises:
            UnavailableError: others had it all the time.
            StoreError: the store failed.
        """
        try:
            self._take(time.monotonic() + timeout_seconds, sleep)
        except UnconditionalError:
            log.warning("%s knows no conditional writes; let one publisher at a time write to it", self._label)
        try:
            yield
        finally:
            if self._tag is not None:
                with contextlib.suppress(UnavailableError):  # it was taken over, or will be
                    self._store.put_tagged(LEASE_NAME, b"", self._tag)
                self._tag = None

    def held(self) -> bool:
        """True while nobody has taken the turn over."""
        found = self._store.get_tagged(LEASE_NAME)
        return self._tag is not None and found is not None and found[1] == self._tag

    def _take(self, deadline: float, sleep: Callable[[float], None]) -> None:
        me = secrets.token_hex(16).encode()
        seen, since = "", time.monotonic()
        while True:
            found = self._store.get_tagged(LEASE_NAME)
            data, tag = found or (b"", None)
            now = time.monotonic()
            if tag != seen:
                seen, since = tag or "", now
            if not data or now - since >= self._seconds:
                with contextlib.suppress(ConflictError):
                    self._tag = self._store.put_tagged(LEASE_NAME, me, tag)
                    return
            if now >= deadline:
                raise UnavailableError(
                    f"{self._label} is held by another writer",
                    advice="Wait until the other publish has ended, then try again.",
                )
            sleep(_POLL_SECONDS)
