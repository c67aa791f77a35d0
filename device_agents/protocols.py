"""What the agent is given besides the seams of edgekit.protocols."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from securesystemslib.signer import Key
from tuf.api.metadata import TargetFile

from edgekit.bundle.manifest import Manifest
from edgekit.serving.models.memory_growth import Grown
from edgekit.trust.assignment import Assignment


class Inference(Protocol):
    """What answers local applications; it keeps answering while a model is switched."""

    async def activate(self, model: str, manifest: Manifest, folder: Path, *, compare: bool = True) -> None:
        """Load a bundle, switch to it between two requests, drain and close the one before.

        Args:
            model: Name that clients ask for.
            manifest, folder: The bundle.
            compare: Whether it is asked its golden samples before it is switched to.

        Raises:
            SelfTestError: it was, and answered wrongly; the one before keeps answering.
            RuntimeLoadError: it cannot be loaded; the one before keeps answering.
        """
        ...

    async def deactivate(self, model: str) -> None:
        """Stop answering for a model locally; no error when it does not."""
        ...

    async def self_test(self, model: str) -> object:
        """Ask the live model its golden samples.

        Raises:
            SelfTestError: the answers are outside the tolerance.
            RuntimeLoadError: it does not answer.
        """
        ...

    def provider(self, model: str) -> str:
        """What really runs a model; empty where it is not loaded."""
        ...

    def counters(self) -> Mapping[str, Mapping[str, float]]:
        """Counters by model, rising since the service began; `update.probation` lists those that it judges by."""
        ...

    async def grown(self) -> Sequence[Grown]:
        """What holds far more memory than when it was loaded, each told once."""
        ...


class Trust(Protocol):
    """Verified metadata, as `edgekit.trust.client.TrustClient`; it blocks, so it is called in a thread."""

    def refresh(self, now: float | None = None, seen: Mapping[str, int] | None = None) -> None:
        """Fetch and verify the top of the repository."""
        ...

    @property
    def versions(self) -> dict[str, int]:
        """Trusted versions by role."""
        ...

    def find_target(self, path: str) -> TargetFile | None:
        """What the catalogue says about a target."""
        ...

    def verify_assignment(
        self, payload: bytes, device: str, fleet: str, now: float, *, seen_version: int = 0
    ) -> Assignment:
        """The assignment in `payload`, verified."""
        ...

    def director_key(self) -> Key:
        """The key that signs assignments and commands."""
        ...


SelfTester = Callable[[Manifest, Path], Awaitable[Any]]
TrustFactory = Callable[[Callable[[str], bytes]], Trust]
