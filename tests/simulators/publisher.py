"""A registry in a memory store with a clock that tests set, and devices that read it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from edgekit.errors import NotFoundError
from edgekit.trust.client import TrustClient
from edgekit.trust.repository import Repository
from edgekit.trust.state import METADATA
from tests.simulators.bundles import manifest_of
from tests.simulators.store import MemoryStore

DAY = 86_400.0


class HeldClock:
    """A clock that shows `now`, which a test sets; it begins at the machine's time."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class Registry:
    """A new registry. Tests may tamper with `store.blobs` and set `clock.now`."""

    def __init__(self, folder: Path, **create: int) -> None:
        self.folder = folder
        self.clock = HeldClock()
        self.store = MemoryStore()
        self.keys = folder / "keys"
        self.repository = Repository(self.store, self.keys, clock=self.clock)
        self.root = self.repository.create(**create)

    def publish(self, name: str = "digits", version: str = "1.0.0", target: str = "pi", model: bytes = b"m") -> str:
        """Publish a manifest for the bytes `model`, and add the model if it is new; returns the TUF path."""
        if name not in self.repository.models():
            self.repository.add_model(name)
        return self.repository.publish(manifest_of(name, version, target, model).canonical_bytes()).path

    def device(self) -> Device:
        """A device that was enrolled with this registry's root."""
        return Device(self.folder / f"device-{os.urandom(4).hex()}", self.root, self.store.blobs)

    def metadata(self) -> dict[str, bytes]:
        """A copy of all metadata files, by name."""
        return {k.removeprefix(METADATA): v for k, v in self.store.blobs.items() if k.startswith(METADATA)}


class Device:
    """A TrustClient that fetches from `blobs`; a test can serve other content, or an error, through `files`."""

    def __init__(self, cache: Path, root: bytes, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.files: dict[str, bytes | Exception] = {}
        self.fetched: list[str] = []
        self.client = TrustClient(cache, root, self.fetch)

    def fetch(self, name: str) -> bytes:
        self.fetched.append(name)
        content = self.files.get(name, self.blobs.get(METADATA + name, NotFoundError(f"no {name}")))
        if isinstance(content, Exception):
            raise content
        return content
