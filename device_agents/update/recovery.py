"""After a start: finds damaged slots and starts their repair, and loads bundles that were refused at the start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from device_agents.deployment import UpdateState
from device_agents.protocols import Inference
from device_agents.update.installed import InstalledModels
from device_agents.update.runner import Updater
from edgekit.errors import EdgekitError, SelfTestError

log = logging.getLogger(__name__)


class Recovery:
    """Checks every slot once after a start.

    Args:
        installed: Loads slots, hashes their files and sends events.
        inference: Tests whether a damaged bundle still answers.
        updaters: The agent's updaters by model.
    """

    def __init__(self, installed: InstalledModels, inference: Inference, updaters: Mapping[str, Updater]) -> None:
        self._installed, self._live, self._inference = installed, installed.live, inference
        self._updaters = updaters

    async def load_again(self, model: str) -> None:
        """Load the installed bundle of a model that was refused at the start and may be used now.

        Raises:
            EdgekitError: it cannot be loaded.
        """
        updater = self._updaters.get(model)
        if updater is None or updater.state.name is not UpdateState.IDLE or updater.state.active is None:
            return  # an update loads its bundle itself
        installed = updater.state.active
        await self._live.load(model, installed)
        if updater.state.active not in (None, installed):  # an update has ended meanwhile
            await self._live.load(model, updater.state.active)

    async def examine_slots(self) -> None:
        """Check the active slot of each model, once after each start; loading a bundle does not find every damage."""
        for model, updater in list(self._updaters.items()):
            state = updater.state
            if state.name is not UpdateState.IDLE or state.active is None:
                continue  # an update checks its files itself
            fault = await self._self_test_fault(model)
            damaged = await self._live.examine(model, state.active, state, answering=fault is None)
            if damaged is None and isinstance(fault, SelfTestError):
                # The files are whole, so the runtime or the machine answers otherwise than when it was installed.
                self._installed.events.send(
                    "self-test-failed", model, type(fault).__name__, str(fault), {"digest": state.active.digest}
                )
            if damaged is not None and updater.state.active == state.active and updater.state.name is UpdateState.IDLE:
                self._installed.notify_damage(model, state.active, damaged)
                updater.damaged(damaged)

    async def _self_test_fault(self, model: str) -> Exception | None:
        """Why the live model does not answer its golden samples; None when it does."""
        try:
            await self._inference.self_test(model)
        except (EdgekitError, asyncio.TimeoutError) as error:
            log.error("%s does not pass its self-test: %s", model, error)
            return error
        return None
