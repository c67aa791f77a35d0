"""The models that the journal says are installed: after a start they answer before anything else of the agent runs.

No control plane is needed for that, and nothing of it is imported here: no MQTT, no TUF, no cryptography.
"""

from __future__ import annotations

import logging

from device_agents.deployment import Damaged, Installed, Limits
from device_agents.protocols import Inference
from device_agents.storage.evidence import EvidenceFile
from device_agents.storage.journal import Journal
from device_agents.threads import in_thread
from device_agents.update.boot import Boot
from device_agents.update.evidence_rules import Policy
from device_agents.update.held_events import HeldEvents
from device_agents.update.live import LiveBundles
from device_agents.update.machine import UpdateMachine
from device_agents.update.runtime_evidence import RuntimeEvidence
from edgekit.errors import DiskError, EdgekitError
from edgekit.protocols import Clock, Disk

log = logging.getLogger(__name__)


class InstalledModels:
    """Loads what is installed, and keeps what the control plane goes on with.

    Args:
        disk: The device's folder.
        journal: Journal on the same disk; its session has begun.
        inference: Answers local applications.
        clock: Time.
        limits: Times and counts of a deployment.
        unproven_runtime: What to do with a bundle on a runtime version that it has no evidence for.
        arch: This device's processor architecture.

    Attributes:
        disk, journal, machine: The folder, its journal, and the rules of updates.
        evidence: Judges bundles by the runtime versions of this device.
        live: Loads bundles.
        boots: The start of each model, after `start`.
        events: The events of the start.
    """

    def __init__(
        self,
        disk: Disk,
        journal: Journal,
        inference: Inference,
        clock: Clock,
        *,
        limits: Limits,
        unproven_runtime: Policy,
        arch: str,
    ) -> None:
        self.disk, self.journal, self.machine = disk, journal, UpdateMachine(limits)
        self._inference, self._clock = inference, clock
        self.events = HeldEvents()
        self.evidence = RuntimeEvidence(EvidenceFile(disk), unproven_runtime, arch)
        self.evidence.listen(self.events.send_unproven)
        self.live = LiveBundles(disk, inference, clock, self.evidence)
        self.boots: dict[str, Boot] = {}
        self._started = False

    async def start(self) -> None:
        """Resume from the journal and make installed models answer; a second call does nothing.

        Raises:
            DataError: the journal was written by another version of the agent.
            DiskError: the disk failed.
        """
        if self._started:
            return
        self._started = True
        models = self.journal.models()
        self._inference.assign([model for model, state in models.items() if not state.is_gone])
        for model, state in models.items():
            self.boots[model] = boot = Boot(state, self.machine, self._clock)
            await self._resume(model, boot)

    def notify_damage(self, model: str, installed: Installed, damaged: Damaged) -> None:
        """Send the event of a damaged slot."""
        detail = {"version": installed.version, "digest": installed.digest, "slot": installed.slot}
        self.events.send("slot-damaged", model, damaged.error, damaged.message, detail)

    async def _resume(self, model: str, boot: Boot) -> None:
        """Load the installed bundle of a model; if its slot is damaged, load the bundle that the rules name instead."""
        installed = boot.begin(self.journal.ended)
        if self.journal.ended == "crash" and boot.state != boot.before:
            await self._note(model, boot)
        while installed is not None:
            installed = await self._load(model, boot, installed)

    async def _note(self, model: str, boot: Boot) -> None:
        """Journal the start before a bundle is loaded, because loading it may crash the process."""
        try:
            await in_thread(self.journal.save, model, boot.state)
        except DiskError as error:
            log.error("%s: this start cannot be written to the journal: %s", model, error)

    async def _load(self, model: str, boot: Boot, installed: Installed) -> Installed | None:
        """Load a slot; return the bundle to load instead when the slot is damaged."""
        try:
            await self.live.load(model, installed, start=True)
            log.info("%s %s answers from slot %s", model, installed.version, installed.slot)
        except EdgekitError as error:
            damaged = await self.live.examine(model, installed, boot.state, answering=False)
            if damaged is not None:
                self.notify_damage(model, installed, damaged)
                return boot.damaged(damaged)
            # The bundle ran here before, so the fault is the device's. The cloud tier and other models still answer.
            log.error("%s %s cannot be loaded: %s", model, installed.version, error)
            self.events.send("load-failed", model, type(error).__name__, str(error), {})
        return None
