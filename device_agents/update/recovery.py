"""After a start: loads the installed bundles, finds damaged slots, reports them and starts their repair."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from device_agents.deployment import Damaged, Installed, UpdateRecord, UpdateState
from device_agents.protocols import Inference
from device_agents.storage.journal import Journal
from device_agents.update.effects import Effects
from device_agents.update.runner import Updater
from edgekit.errors import EdgekitError, SelfTestError

log = logging.getLogger(__name__)

Notify = Callable[[str, str, str, str, dict[str, Any]], None]  # kind, model, error, message, detail


class Recovery:
    """Resumes each model from the journal, and checks every slot once.

    Args:
        journal: Journal of the last run.
        effects: Loads slots and hashes their files.
        inference: Tests whether a damaged bundle still answers.
        updaters: The agent's updaters by model; each exists before its `resume`.
        notify: Sends an event to the controller.
    """

    def __init__(
        self, journal: Journal, effects: Effects, inference: Inference, updaters: Mapping[str, Updater], notify: Notify
    ) -> None:
        self._journal, self._effects, self._inference = journal, effects, inference
        self._updaters, self._notify = updaters, notify

    async def resume(self, model: str, state: UpdateRecord) -> None:
        """Load the installed bundle of a model; if its slot is damaged, load the bundle that the rules name instead.

        Args:
            model: Name of the model.
            state: Its journalled state, which its updater holds.
        """
        updater = self._updaters[model]
        installed = updater.boot(self._journal.ended)
        if self._journal.ended == "crash" and updater.state != state:
            await updater.note_boot()
        while installed is not None:
            installed = await self._load(model, installed)

    async def load_again(self, model: str) -> None:
        """Load the installed bundle of a model that was refused at the start and may be used now.

        Raises:
            EdgekitError: it cannot be loaded.
        """
        updater = self._updaters.get(model)
        if updater is None or updater.state.name is not UpdateState.IDLE or updater.state.active is None:
            return  # an update loads its bundle itself
        installed = updater.state.active
        await self._effects.load(model, installed)
        if updater.state.active not in (None, installed):  # an update has ended meanwhile
            await self._effects.load(model, updater.state.active)

    async def examine_slots(self) -> None:
        """Check the active slot of each model, once after each start; loading a bundle does not find every damage."""
        for model, updater in list(self._updaters.items()):
            state = updater.state
            if state.name is not UpdateState.IDLE or state.active is None:
                continue  # an update checks its files itself
            fault = await self._self_test_fault(model)
            damaged = await self._effects.examine(model, state.active, state, answering=fault is None)
            if damaged is None and isinstance(fault, SelfTestError):
                # The files are whole, so the runtime or the machine answers otherwise than when it was installed.
                self._notify(
                    "self-test-failed", model, type(fault).__name__, str(fault), {"digest": state.active.digest}
                )
            if damaged is not None and updater.state.active == state.active and updater.state.name is UpdateState.IDLE:
                self._notify_damage(model, state.active, damaged)
                updater.damaged(damaged)

    async def _load(self, model: str, installed: Installed) -> Installed | None:
        """Load a slot; return the bundle to load instead when the slot is damaged."""
        try:
            await self._effects.load(model, installed, start=True)
            log.info("%s %s answers from slot %s", model, installed.version, installed.slot)
        except EdgekitError as error:
            updater = self._updaters[model]
            damaged = await self._effects.examine(model, installed, updater.state, answering=False)
            if damaged is not None:
                self._notify_damage(model, installed, damaged)
                return updater.boot_damaged(damaged)
            # The bundle ran here before, so the fault is the device's. The cloud tier and other models still answer.
            log.error("%s %s cannot be loaded: %s", model, installed.version, error)
            self._notify("load-failed", model, type(error).__name__, str(error), {})
        return None

    async def _self_test_fault(self, model: str) -> Exception | None:
        """Why the live model does not answer its golden samples; None when it does."""
        try:
            await self._inference.self_test(model)
        except (EdgekitError, asyncio.TimeoutError) as error:
            log.error("%s does not pass its self-test: %s", model, error)
            return error
        return None

    def _notify_damage(self, model: str, installed: Installed, damaged: Damaged) -> None:
        detail = {"version": installed.version, "digest": installed.digest, "slot": installed.slot}
        self._notify("slot-damaged", model, damaged.error, damaged.message, detail)
