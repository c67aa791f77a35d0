"""The bundles that answer on this device: loads the bundle of a slot, and hashes slots."""

from __future__ import annotations

import logging

from device_agents.deployment import Damaged, Installed, UpdateRecord
from device_agents.protocols import Inference
from device_agents.storage.slot_check import check_slot
from device_agents.storage.slots import Slots
from device_agents.threads import in_thread
from device_agents.update.runtime_evidence import RuntimeEvidence
from edgekit.errors import EdgekitError, ShortageError
from edgekit.protocols import Clock, Disk

log = logging.getLogger(__name__)


class LiveBundles:
    """Loads the bundles of slots, so that they answer.

    Args:
        disk: The device's folder.
        inference: Answers local applications.
        clock: Wall time for events.
        evidence: Judges the version of the runtime; None where it is not judged.
    """

    def __init__(self, disk: Disk, inference: Inference, clock: Clock, evidence: RuntimeEvidence | None = None) -> None:
        self._disk, self._inference, self._clock, self._evidence = disk, inference, clock, evidence
        self._live: dict[str, tuple[str, str]] = {}  # model -> slot and digest of the live bundle

    async def load(self, model: str, installed: Installed, *, start: bool = False) -> None:
        """Load the bundle of a slot and let it answer; nothing when it already answers.

        Args:
            model: Name of the model.
            installed: The bundle.
            start: The agent has started, and its runtime may be another version than when the bundle was tested.

        Raises:
            DiskError, VerificationError, ManifestError, RuntimeLoadError: the bundle cannot be loaded.
            CompatibilityError, SelfTestError: after a start, the version of the runtime is refused, or gives wrong
                answers.
        """
        if self._live.get(model) == (installed.slot, installed.digest):
            return
        slots = Slots(self._disk, model)
        manifest = await in_thread(slots.manifest, installed.slot, installed.digest)
        self._live.pop(model, None)  # unknown during the change, and after a cancelled one
        evidence = self._evidence
        # The bundle passed its test when it was staged. Probation, or the slot check after a start, tests it live.
        compare = await evidence.check_start(manifest) if start and evidence is not None else False
        await self._inference.activate(model, manifest, slots.path(installed.slot), compare=compare)
        self._live[model] = (installed.slot, installed.digest)
        if evidence is not None:
            await evidence.activated(manifest)

    async def unload(self, model: str) -> None:
        """Stop answering for a model; no error for an unknown model."""
        await self._inference.deactivate(model)
        self._live.pop(model, None)

    async def examine(
        self, model: str, installed: Installed, state: UpdateRecord, *, answering: bool
    ) -> Damaged | None:
        """Hash every file of a slot; None when all are whole, or when that cannot be determined now."""
        try:
            await in_thread(check_slot, self._disk, model, installed)
            return None
        except EdgekitError as error:
            if isinstance(error, ShortageError):
                log.warning("%s %s cannot be checked now: %s", model, installed.version, error)
                return None
            name, message = type(error).__name__, str(error)
        log.error("%s %s is damaged in slot %s: %s", model, installed.version, installed.slot, message)
        fallback = state.previous is not None and await self._whole(model, state.previous)
        at = self._clock.wall()
        return Damaged(
            digest=installed.digest, error=name, message=message, fallback=fallback, answering=answering, at=at
        )

    async def _whole(self, model: str, installed: Installed) -> bool:
        try:
            await in_thread(check_slot, self._disk, model, installed)
        except EdgekitError as error:
            log.warning("%s %s is not whole either: %s", model, installed.version, error)
            return isinstance(error, ShortageError)
        return True
