"""Notifies systemd that the agent is ready, alive or stopping (sd_notify(3)); does nothing without systemd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, MutableMapping

log = logging.getLogger(__name__)

ADDRESS, WATCHDOG_MICROSECONDS, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
SEND_TIMEOUT_SECONDS = 1.0  # the socket buffers a few messages, and a busy manager reads them late


class Notifier:
    """Sends notifications to the service manager's socket, if the environment names one.

    Args:
        address: Path of a datagram socket, or ``@`` and an abstract name; empty for none.
        watchdog_seconds: After this time without a message the manager ends this process; 0 for never.
    """

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def take(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Make a notifier from the environment variables and remove them, so that child processes do not notify."""
        address = environment.pop(ADDRESS, "")
        microseconds, pid = environment.pop(WATCHDOG_MICROSECONDS, ""), environment.pop(WATCHDOG_PID, "")
        mine = pid in ("", str(os.getpid()))
        seconds = int(microseconds) / 1e6 if mine and microseconds.isdecimal() else 0.0
        return cls(address if address[:1] in ("/", "@") else "", seconds)

    @property
    def managed(self) -> bool:
        """True if a service manager waits for notifications."""
        return bool(self._address)

    def notify(self, state: str, timeout_seconds: float = SEND_TIMEOUT_SECONDS) -> None:
        """Send lines such as ``READY=1``; a failure, or a manager that does not read them in time, is logged."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
                end.settimeout(timeout_seconds)
                end.sendto(state.encode(), self._address)
        except OSError as error:
            log.warning("the service manager was not notified of %s: %s", state.splitlines()[0], error)

    @contextlib.asynccontextmanager
    async def running(self, status: str) -> AsyncIterator[None]:
        """Notify that the agent is ready, that its event loop is alive, and at the end that it is stopping."""
        self.notify(f"READY=1\nSTATUS={status}")
        alive = asyncio.create_task(self._notify_alive())
        try:
            yield
        finally:
            alive.cancel()
            self.notify("STOPPING=1")

    async def _notify_alive(self) -> None:
        while self._address and self.watchdog_seconds:
            self.notify("WATCHDOG=1", 0.0)  # the event loop must not wait; the next message follows soon
            await asyncio.sleep(self.watchdog_seconds / 3)
