"""Remote commands: accepted when signed by the director, for this device, not expired, and with a new number."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from securesystemslib.signer import Key

from device_agents.control.link import ControlLink
from device_agents.protocols import Inference
from device_agents.storage.journal import Journal
from device_agents.threads import in_thread
from edgekit.errors import DataError, EdgekitError, ExpiredError, TransportError, UnavailableError, VerificationError
from edgekit.mqtt import messages
from edgekit.protocols import Clock
from edgekit.trust.envelopes import open_envelope

log = logging.getLogger(__name__)


class Commands:
    """Verifies and runs the commands of the command topic.

    Args:
        device, fleet: Names of this device and its fleet.
        link: Receives commands and sends results.
        journal: Notes the highest accepted number.
        inference: Runs the self-test of a live model.
        director_key: Gives the key that must have signed.
        active: Gives the names of the models that have an active bundle.
        clock: Wall time, for expiry.
    """

    def __init__(
        self,
        device: str,
        fleet: str,
        *,
        link: ControlLink,
        journal: Journal,
        inference: Inference,
        director_key: Callable[[], Awaitable[Key]],
        active: Callable[[], list[str]],
        clock: Clock,
    ) -> None:
        self._device, self._fleet, self._link, self._journal = device, fleet, link, journal
        self._inference, self._director_key, self._active, self._clock = inference, director_key, active, clock

    async def run(self) -> None:
        """Run commands until cancelled."""
        while True:
            payload = await self._link.commands.get()
            try:
                command = await self.accept(payload)
            except (VerificationError, DataError, UnavailableError) as error:
                log.warning("a command was refused: %s: %s", type(error).__name__, error)
                kind = type(error).__name__
                self._link.event(
                    messages.Event(self._device, "command-refused", self._clock.wall(), error=kind, message=str(error))
                )
                continue
            result = await self.execute(command)
            try:
                await self._link.result(result)
            except TransportError as error:
                log.warning("the result of command %d was not sent: %s", command.number, error)

    async def accept(self, payload: bytes) -> messages.Command:
        """The command in `payload`, verified; its number is noted and not accepted again.

        Raises:
            DataError, SignatureError: it is not a command of the director.
            VerificationError, ExpiredError: it is for another device, its number is not new, or it has expired.
            UnavailableError: the director's key is not known yet.
        """
        command = open_envelope(payload, messages.Command, await self._director_key())
        if (command.device, command.fleet) != (self._device, self._fleet):
            raise VerificationError(
                f"command {command.number} is for {command.device!r} of fleet {command.fleet!r}, "
                f"this is {self._device!r} of {self._fleet!r}"
            )
        if self._clock.wall() >= command.expires:
            raise ExpiredError(f"command {command.number} has expired")
        highest = self._journal.record.command
        if command.number <= highest:
            raise VerificationError(f"command {command.number} came again: number {highest} was accepted before")
        await in_thread(self._journal.accept_command, command.number)
        return command

    async def execute(self, command: messages.Command) -> messages.Result:
        """Run a command; the result says how it ended."""
        if command.kind != messages.SELF_TEST:
            message = f"unknown command {command.kind!r}, this agent knows: {', '.join(messages.COMMAND_KINDS)}"
            return messages.Result(self._device, command.number, False, message)
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
        return messages.Result(self._device, command.number, not faults, message, {"models": passed})
