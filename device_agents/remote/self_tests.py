"""The command `self-test`: the golden samples of every live model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from device_agents.protocols import Inference
from device_agents.remote.answer import CommandAnswer
from edgekit.errors import EdgekitError
from edgekit.mqtt.command_arguments import NoArguments


class SelfTests:
    """Runs the command `self-test`.

    Args:
        inference: Runs the self-test of a live model.
        active: Gives the names of the models that have an active bundle.
    """

    def __init__(self, inference: Inference, active: Callable[[], list[str]]) -> None:
        self._inference, self._active = inference, active

    async def answer(self, arguments: NoArguments) -> CommandAnswer:
        """Test each model."""
        models = self._active()
        faults: dict[str, str] = {}
        for model in models:
            try:
                await self._inference.self_test(model)
            except EdgekitError as error:
                faults[model] = f"{type(error).__name__}: {error}"
            except asyncio.TimeoutError:
                faults[model] = "it did not answer in time"
        passed = {model: faults.get(model, "passed") for model in models}
        message = "; ".join(faults.values()) or f"{len(models)} model(s) passed"
        return CommandAnswer(not faults, message, {"models": passed})
