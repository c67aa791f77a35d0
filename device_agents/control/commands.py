"""Remote commands: accepted when signed by the director, for this device, not expired, and with a new number."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from securesystemslib.signer import Key

from device_agents.control.link import ControlLink
from device_agents.remote.answer import CommandAnswer, Handler
from device_agents.storage.journal import Journal
from device_agents.threads import in_thread
from edgekit.errors import DataError, EdgekitError, ExpiredError, UnavailableError, VerificationError
from edgekit.mqtt import messages
from edgekit.mqtt.command_arguments import PROFILE, parse_arguments
from edgekit.protocols import Clock
from edgekit.trust.envelopes import open_envelope

log = logging.getLogger(__name__)

LONG_KINDS = (PROFILE,)  # run beside other commands, one at a time


class Commands:
    """Verifies and runs the commands of the command topic.

    Args:
        device, fleet: Names of this device and its fleet.
        link: Receives commands and sends results.
        journal: Notes the highest accepted number.
        handlers: Runs a command of a kind, given its parsed arguments.
        director_key: Gives the key that must have signed.
        restart: Ends the agent so that it starts again.
        clock: Wall time, for expiry.

    Attributes:
        unexpected_errors: Count of commands that ended in an unexpected error.
    """

    def __init__(
        self,
        device: str,
        fleet: str,
        *,
        link: ControlLink,
        journal: Journal,
        handlers: Mapping[str, Handler],
        director_key: Callable[[], Awaitable[Key]],
        restart: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._device, self._fleet, self._link, self._journal = device, fleet, link, journal
        self._handlers, self._director_key, self._restart, self._clock = handlers, director_key, restart, clock
        self._long: asyncio.Task[None] | None = None
        self.unexpected_errors = 0

    async def run(self) -> None:
        """Run commands until cancelled."""
        try:
            while True:
                await self._next()
        finally:
            if self._long is not None:
                self._long.cancel()
                await asyncio.gather(self._long, return_exceptions=True)

    async def _next(self) -> None:
        payload = await self._link.commands.get()
        try:
            command = await self.accept(payload)
        except (VerificationError, DataError, UnavailableError) as error:
            self._refuse(error)
            return
        log.info("command %d: %s", command.number, command.kind)
        if command.kind not in LONG_KINDS:
            await self._finish(command)
        elif self._long is None or self._long.done():
            self._long = asyncio.create_task(self._finish(command))
        else:
            await self._send(command, CommandAnswer(False, f"another {command.kind} is running; try again later"))

    def _refuse(self, error: EdgekitError) -> None:
        kind = type(error).__name__
        log.warning("a command was refused: %s: %s", kind, error)
        self._link.event(
            messages.Event(self._device, "command-refused", self._clock.wall(), error=kind, message=str(error))
        )

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
        now = self._clock.wall()
        if now >= command.expires:
            shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
            late = now - command.expires
            raise ExpiredError(
                f"command {command.number} expired {late:.0f} s ago by this device's clock, which shows {shown}"
            )
        highest = self._journal.record.command
        if command.number <= highest:
            raise VerificationError(f"command {command.number} came again: number {highest} was accepted before")
        await in_thread(self._journal.accept_command, command.number)
        return command

    async def execute(self, command: messages.Command) -> CommandAnswer:
        """Run a command; every error becomes an answer."""
        handler = self._handlers.get(command.kind)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return CommandAnswer(False, f"unknown command {command.kind!r}, this agent knows: {known}")
        try:
            return await handler(parse_arguments(command.kind, command.args))
        except EdgekitError as error:
            return CommandAnswer(False, f"{type(error).__name__}: {error}. {error.advice}".rstrip(" ."))
        except Exception as error:
            # The boundary of one command: a bug in it must not end the agent, which serves models.
            self.unexpected_errors += 1
            log.exception("command %d met an unexpected error", command.number)
            return CommandAnswer(False, f"{type(error).__name__}: {error}")

    async def _finish(self, command: messages.Command) -> None:
        answer = await self.execute(command)
        await self._send(command, answer)
        if answer.restart:
            self._restart()

    async def _send(self, command: messages.Command, answer: CommandAnswer) -> None:
        result = messages.Result(self._device, command.number, answer.ok, answer.message, answer.detail)
        await self._link.result(result)
