"""Compares the runtime versions of this device with the evidence of its bundles, and follows new evidence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from device_agents.storage.evidence import EvidenceFile
from device_agents.threads import in_thread
from device_agents.update.evidence_rules import Policy, needs_test_at_start, refuses_start, refuses_update
from edgekit.bundle.evidence import Evidence, Standing, parse_evidence, standing, standing_text
from edgekit.bundle.manifest import Manifest, target_path
from edgekit.errors import CompatibilityError, EdgekitError
from edgekit.versions import runtime_version

if TYPE_CHECKING:  # it judges bundles before TUF is imported
    from tuf.api.metadata import TargetFile

log = logging.getLogger(__name__)

SURVEY_SECONDS, RETRY_SECONDS, CONNECTION_SECONDS = 3600.0, 60.0, 600.0
Listener = Callable[[str, str, dict[str, Any]], None]


class RuntimeEvidence:
    """Judges bundles by the runtime versions of this device.

    Args:
        file: The evidence that this device has.
        policy: What to do with a version without evidence.
        arch: This device's processor architecture.
        version_of: Package and version that provide a bundle's runtime here, as in ``onnxruntime 1.31.1``.
    """

    def __init__(
        self,
        file: EvidenceFile,
        policy: Policy,
        arch: str,
        version_of: Callable[[str], str] = runtime_version,
    ) -> None:
        self._file, self._policy, self._arch, self._version_of = file, policy, arch, version_of
        self._doubtful: dict[str, Manifest] = {}  # by model, the installed bundles whose version is not proven
        self._told: set[tuple[str, str, Standing]] = set()
        self._listener: Listener = lambda model, message, detail: None
        self._renewed: Callable[[str], None] = lambda model: None

    def listen(self, listener: Listener) -> None:
        """Call ``listener(model, message, detail)`` once for each bundle whose runtime version is not proven."""
        self._listener = listener

    def on_renewed(self, renewed: Callable[[str], None]) -> None:
        """Call ``renewed(model)`` when a model's bundle has new evidence."""
        self._renewed = renewed

    @property
    def facts(self) -> dict[str, Any]:
        """For reports: by model, the runtime version that its installed bundle has no good evidence for; or nothing."""
        doubtful = {model: self._version_of(one.runtime) for model, one in sorted(self._doubtful.items())}
        return {"unproven": doubtful} if doubtful else {}

    def of(self, model: str, digest: str) -> tuple[Evidence, ...]:
        """The evidence of a bundle. It reads a small file."""
        return self._file.get(model, digest)

    def check_update(self, manifest: Manifest, evidence: tuple[Evidence, ...]) -> list[str]:
        """Why the device must not take a bundle; empty where it may. What is not proven is logged and reported."""
        found, text = self._judged(manifest, evidence)
        if found is Standing.PROVEN:
            return []
        self._tell(manifest, found, text)
        return [text] if refuses_update(found, self._policy) else []

    async def keep(self, manifest: Manifest, evidence: tuple[Evidence, ...]) -> None:
        """Keep the evidence of a bundle for the next start. Raises DiskError."""
        await in_thread(self._file.put, manifest.name, manifest.digest, evidence)

    async def check_start(self, manifest: Manifest) -> bool:
        """Judge an installed bundle before it is loaded after a start.

        Returns:
            True if its golden samples must pass first.

        Raises:
            CompatibilityError: the policy refuses it.
        """
        found, text = self._judged(manifest, await in_thread(self._file.get, manifest.name, manifest.digest))
        if found is Standing.PROVEN:
            self._doubtful.pop(manifest.name, None)
            return False
        self._doubtful[manifest.name] = manifest
        self._tell(manifest, found, text)
        if refuses_start(found, self._policy):
            raise CompatibilityError([text])
        return needs_test_at_start(found, self._policy)

    async def activated(self, manifest: Manifest) -> None:
        """Note the bundle of a model that answers now."""
        found, _ = self._judged(manifest, await in_thread(self._file.get, manifest.name, manifest.digest))
        self._doubtful.pop(manifest.name, None)
        if found is not Standing.PROVEN:
            self._doubtful[manifest.name] = manifest

    async def forget(self, model: str) -> None:
        """Drop a model that is uninstalled. Raises DiskError."""
        self._doubtful.pop(model, None)
        await in_thread(self._file.forget, model)

    async def run(
        self,
        find_target: Callable[[str], Awaitable[TargetFile | None]],
        wait_connected: Callable[[float], Awaitable[None]],
        reload: Callable[[str], Awaitable[None]],
        changed: Callable[[], None],
        survey_seconds: float = SURVEY_SECONDS,
    ) -> None:
        """Look for new evidence while a bundle's version is not proven, until cancelled.

        Args:
            find_target: Gives the fresh catalogue's entry for a path.
            wait_connected: Waits for the broker, at most so many seconds.
            reload: Loads the installed bundle of a model, if it does not answer.
            changed: Asks for a report.
            survey_seconds: Interval.
        """
        while True:
            wait = survey_seconds
            for model, manifest in list(self._doubtful.items()):
                try:
                    await wait_connected(CONNECTION_SECONDS)
                    if await self._renew(model, manifest, find_target):
                        await reload(model)
                        changed()
                except EdgekitError as error:
                    log.info("%s: its evidence cannot be fetched now: %s", model, error)
                    wait = min(survey_seconds, RETRY_SECONDS)
            await asyncio.sleep(wait)

    async def _renew(
        self, model: str, manifest: Manifest, find_target: Callable[[str], Awaitable[TargetFile | None]]
    ) -> bool:
        """True if the evidence has changed and the bundle's version is proven now."""
        target = await find_target(target_path(manifest.name, manifest.target, manifest.version))
        if target is None or target.hashes.get("sha256") != manifest.digest:
            return False
        evidence = parse_evidence(target.custom if isinstance(target.custom, Mapping) else {})
        if not await in_thread(self._file.put, model, manifest.digest, evidence):
            return False
        self._renewed(model)
        found, text = self._judged(manifest, evidence)
        if self._doubtful.get(model) is not manifest:
            return False  # another bundle is active meanwhile
        if found is not Standing.PROVEN:
            self._tell(manifest, found, text)
            return False
        del self._doubtful[model]
        log.info("%s %s is proven with %s now", model, manifest.version, self._version_of(manifest.runtime))
        return True

    def _judged(self, manifest: Manifest, evidence: tuple[Evidence, ...]) -> tuple[Standing, str]:
        running = self._version_of(manifest.runtime)
        found = standing(manifest, running, self._arch, evidence)
        return found, standing_text(manifest, running, found)

    def _tell(self, manifest: Manifest, found: Standing, text: str) -> None:
        key = (manifest.name, manifest.digest, found)
        if key in self._told:
            return
        self._told.add(key)
        log.warning("%s", text)
        running = self._version_of(manifest.runtime)
        self._listener(manifest.name, text, {"runtime": running, "standing": found.value, "digest": manifest.digest})
