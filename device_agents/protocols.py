"""Protocols of the agent's parts, besides those of edgekit.protocols."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from device_agents.shadow import ShadowTask
from edgekit.bundle.manifest import Manifest
from edgekit.mqtt.messages import Behaviour, Shadow
from edgekit.serving.models.memory_growth import Grown
from edgekit.sketches.sketch import Sketch

if TYPE_CHECKING:  # the installed models answer before TUF and cryptography are imported
    from securesystemslib.signer import Key
    from tuf.api.metadata import TargetFile

    from edgekit.trust.assignment import Assignment


class Inference(Protocol):
    """The service that answers local applications, also while a model is switched."""

    async def activate(self, model: str, manifest: Manifest, folder: Path, *, compare: bool = True) -> None:
        """Load a bundle, switch to it between two requests, then close the previous bundle.

        Args:
            model: Name of the model in requests.
            manifest, folder: The bundle.
            compare: Whether its golden samples are run before the switch.

        Raises:
            SelfTestError: its golden answers are wrong; the previous bundle keeps answering.
            RuntimeLoadError: it cannot be loaded; the previous bundle keeps answering.
        """
        ...

    async def deactivate(self, model: str) -> None:
        """Stop answering for a model locally; no error for an unknown model."""
        ...

    def assign(self, models: Collection[str]) -> None:
        """Set the names of the models that this device should have."""
        ...

    async def self_test(self, model: str) -> object:
        """Run the golden samples on the live model.

        Raises:
            SelfTestError: the answers are outside the tolerance.
            RuntimeLoadError: the model does not answer.
        """
        ...

    def provider(self, model: str) -> str:
        """The execution provider that runs a model; empty for a model that is not loaded."""
        ...

    def counters(self) -> Mapping[str, Mapping[str, float]]:
        """Counters by model, rising since the start of the service; `update.probation` lists those that it uses."""
        ...

    def behaviour(self, model: str) -> Mapping[str, Behaviour]:
        """How the bundles of a model behaved that ran last, by digest; the newest is the last."""
        ...

    async def shadow(self, model: str, manifest: Manifest, folder: Path, task: ShadowTask) -> None:
        """Compare a bundle with the active one on the next inputs; returns when that ends or cannot be done.

        Args:
            model: Name of the model.
            manifest, folder: The bundle; it has passed its self-test.
            task: When it ends, and where its result is stored.
        """
        ...

    def shadowed(self, model: str) -> Shadow | None:
        """The last comparison of a bundle of a model with the active one; None where there was none."""
        ...

    def take_sketches(self) -> dict[str, Sketch]:
        """Sketches of the answers since the last call, by their names in telemetry (`edgekit.sketches.signals`)."""
        ...

    async def grown(self) -> Sequence[Grown]:
        """Models, or the agent, that hold far more memory than after loading; each is returned once."""
        ...


class Trust(Protocol):
    """Verified metadata; `edgekit.trust.client.TrustClient` implements it. It blocks, so it is called in a thread."""

    def refresh(self, now: float | None = None, seen: Mapping[str, int] | None = None) -> None:
        """Fetch and verify the top-level metadata of the repository."""
        ...

    @property
    def versions(self) -> dict[str, int]:
        """Trusted versions by role."""
        ...

    @property
    def held(self) -> dict[str, int]:
        """Versions by role that were verified last, those of publishers included."""
        ...

    def find_target(self, path: str) -> TargetFile | None:
        """The catalogue's entry for a target; None when it has none."""
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
