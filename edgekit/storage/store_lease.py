"""A lease that lets one writer at a time change an object store, made with conditional writes.

The lease is one object with the name of its holder, or empty. The holder writes it once. A waiter that has seen it
unchanged for `LEASE_SECONDS` takes it over: so a holder that died blocks others no longer than that, and no clocks are
compared. A holder that was only slow notices the loss at its next conditional write.
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
POLL_SECONDS = 0.2


class ConflictError(UnavailableError):
    """The object has changed since it was read."""


class UnconditionalError(Exception):
    """The store does not support conditional writes."""


class Tagged(Protocol):
    """A store with conditional writes."""

    def get_tagged(self, name: str) -> tuple[bytes, str] | None:
        """The object and its tag; None if there is no such object."""
        ...

    def put_tagged(self, name: str, data: bytes, tag: str | None) -> str:
        """Write if the object has `tag` (None: is absent); returns its new tag.

        Raises:
            ConflictError: the object has another tag.
            UnconditionalError: the store does not support conditional writes.
        """
        ...


class Lease:
    """The lease of a store.

    Args:
        store: The store.
        label: Name of the store in messages.
        seconds: Time without a change after which a waiter takes the lease over.
        poll_seconds: Time between two looks at the lease while waiting.
    """

    def __init__(
        self, store: Tagged, label: str, *, seconds: float = LEASE_SECONDS, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._store, self._label, self._seconds, self._poll_seconds = store, label, seconds, poll_seconds
        self._tag: str | None = None

    @contextlib.contextmanager
    def hold(self, timeout_seconds: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """Wait for the lease, hold it, and release it at the end.

        Args:
            timeout_seconds: Time to wait for it.
            sleep: Waits for a number of seconds.

        Raises:
            UnavailableError: other writers held it for the whole time.
            StoreError: the store failed.
        """
        try:
            self._take(time.monotonic() + timeout_seconds, sleep)
        except UnconditionalError:
            log.warning("%s supports no conditional writes: run only one publisher at a time", self._label)
        try:
            yield
        finally:
            if self._tag is not None:
                with contextlib.suppress(UnavailableError):  # it was taken over, or it will expire
                    self._store.put_tagged(LEASE_NAME, b"", self._tag)
                self._tag = None

    def held(self) -> bool:
        """True while no other writer has taken the lease over."""
        current = self._store.get_tagged(LEASE_NAME)
        return self._tag is not None and current is not None and current[1] == self._tag

    def _take(self, deadline: float, sleep: Callable[[float], None]) -> None:
        name = secrets.token_hex(16).encode()
        last_tag, since = "", time.monotonic()
        while True:
            data, tag = self._store.get_tagged(LEASE_NAME) or (b"", None)
            now = time.monotonic()
            if tag != last_tag:
                last_tag, since = tag or "", now
            if not data or now - since >= self._seconds:
                with contextlib.suppress(ConflictError):
                    self._tag = self._store.put_tagged(LEASE_NAME, name, tag)
                    return
            if now >= deadline:
                raise UnavailableError(
                    f"{self._label} is held by another writer",
                    advice="Wait until the other publish has ended, then try again.",
                )
            sleep(self._poll_seconds)
