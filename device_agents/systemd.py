"""What systemd is told: ready, alive, stopping; sd_notify(3) without its library. Nothing elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, MutableMapping

log = logging.getLogger(__name__)

ADDRESS, WATCHDOG_MICROSECONDS, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
PATIENCE_SECONDS = 1.0  # the socket holds a few messages; a busy manager takes them late


class Notifier:
    """The service manager's socket, if this process was given one.

    Args:
        address: Path of a datagram socket, or ``@`` and an abstract name; empty for none.
        watchdog_seconds: Silence after which the manager ends this process; 0 for never.
    """

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def take(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """From the environment, and out of it: the models' own processes must not speak for the agent."""
        address = environment.pop(ADDRESS, "")
        microseconds, pid = environment.pop(WATCHDOG_MICROSECONDS, ""), environment.pop(WATCHDOG_PID, "")
        mine = pid in ("", str(os.getpid()))
        seconds = int(microseconds) / 1e6 if mine and microseconds.isdecimal() else 0.0
        return cls(address if address[:1] in ("/", "@") else "", seconds)

    def say(self, state: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Send lines such as ``READY=1``; a manager that does not take them in that time is logged."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
                end.settimeout(patience_seconds)
                end.sendto(state.encode(), self._address)
        except OSError as error:
            log.warning("the service manager was not told %s: %s", state.splitlines()[0], error)

    @contextlib.asynccontextmanager
    async def running(self, status: str) -> AsyncIterator[None]:
        """Tell that the agent is ready, that its event loop turns as long as it does, and that it stops."""
        self.say(f"READY=1\nSTATUS={status}")
        alive = asyncio.create_task(self._tell_alive())
        try:
            yield
        finally:
            alive.cancel()
            self.say("STOPPING=1")

    async def _tell_alive(self) -> None:
        while self._address and self.watchdog_seconds:
            self.say("WATCHDOG=1", 0.0)  # the next one is soon; the loop must not wait
            await asyncio.sleep(self.watchdog_seconds / 3)
