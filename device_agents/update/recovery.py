"""After a start: what is installed answers again, and what the disk damaged is noticed, told and healed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from device_agents.deployment import Damaged, Installed, S, State
from device_agents.protocols import Inference
from device_agents.storage.journal import Journal
from device_agents.update.effects import Effects
from device_agents.update.runner import Updater
from edgekit.errors import EdgekitError

log = logging.getLogger(__name__)


Tell = Callable[[str, str, str, str, dict[str, Any]], None]  # kind, model, error, message, detail


class Recovery:
    """Takes up what the journal says, and looks once at every slot.

    Args:
        journal: Of the last run.
        effects: Loads slots and hashes them.
        inference: Asked whether a damaged bundle still answers.
        updaters: By model; the agent's own, filled before `take_up`.
        tell: Tells the control side.
    """

    def __init__(
        self, journal: Journal, effects: Effects, inference: Inference, updaters: Mapping[str, Updater], tell: Tell
    ) -> None:
        self._journal, self._effects, self._inference = journal, effects, inference
        self._updaters, self._tell = updaters, tell

    async def take_up(self, model: str, state: State) -> None:
        """Make what is installed answer, before anything else; what must answer instead where that is damaged.

        Args:
            model: Its name; its updater holds `state`.
            state: As journalled.
        """
        updater = self._updaters[model]
        installed = updater.boot(self._journal.ended)
        if self._journal.ended == "crash" and updater.state != state:
            await updater.note_boot()
        while installed is not None:
            installed = await self._load(model, installed)

    async def examine_slots(self) -> None:
        """Once after each start: a slot may be damaged where loading it does not notice."""
        for model, updater in list(self._updaters.items()):
            state = updater.state
            if state.name is not S.IDLE or state.active is None:
                continue  # an update looks at its files itself
            damaged = await self._effects.examine(model, state.active, state, answering=await self._is_right(model))
            if damaged is not None and updater.state.active == state.active and updater.state.name is S.IDLE:
                self._tell_damage(model, state.active, damaged)
                updater.damaged(damaged)

    async def _load(self, model: str, installed: Installed) -> Installed | None:
        """Make a slot answer; what must answer instead where the slot turns out to be damaged."""
        try:
            await self._effects.load(model, installed)
            log.info("%s %s answers from slot %s", model, installed.version, installed.slot)
        except EdgekitError as error:
            updater = self._updaters[model]
            damaged = await self._effects.examine(model, installed, updater.state, answering=False)
            if damaged is not None:
                self._tell_damage(model, installed, damaged)
                return updater.boot_damaged(damaged)
            # It ran here before, so this is the device's trouble; the cloud tier and other models still answer.
            log.error("%s %s cannot be loaded: %s", model, installed.version, error)
            self._tell("load-failed", model, type(error).__name__, str(error), {})
        return None

    async def _is_right(self, model: str) -> bool:
        """True when the live model answers its golden samples."""
        try:
            await self._inference.self_test(model)
        except (EdgekitError, asyncio.TimeoutError) as error:
            log.error("%s does not pass its self-test: %s", model, error)
            return False
        return True

    def _tell_damage(self, model: str, installed: Installed, damaged: Damaged) -> None:
        detail = {"version": installed.version, "digest": installed.digest, "slot": installed.slot}
        self._tell("slot-damaged", model, damaged.error, damaged.message, detail)
