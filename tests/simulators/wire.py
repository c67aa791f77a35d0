"""A TCP forwarder between a client and a server whose connections can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType


class Wire:
    """Forwards connections to 127.0.0.1:`port` to a server; an async context manager.

    Attributes:
        port: Port for clients.
        connections: Number of connections so far.
        holding: While True, new connections are closed at once.
        idle_seconds: A connection without traffic for this long is closed, as proxies do; 0 for never.
    """

    def __init__(self, host: str, port: int, *, idle_seconds: float = 0.0) -> None:
        self.port = 0
        self.connections = 0
        self.holding = False
        self.idle_seconds = idle_seconds
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """URL of the broker through this proxy."""
        return f"mqtt://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection at once, in both directions, without an MQTT packet."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        self._writers.add(writer)
        try:
            if self.holding:
                return
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers.add(far_writer)
            idle = Idle(self.idle_seconds, [writer, far_writer])
            try:
                await asyncio.gather(_pump(reader, far_writer, idle), _pump(far_reader, writer, idle))
            finally:
                idle.stop()
                self._writers.discard(far_writer)
                far_writer.close()
        except OSError:
            pass  # the server is not running, or `cut` was called
        finally:
            self._writers.discard(writer)
            writer.close()


class Idle:
    """Closes connections that nobody has called `active` for in `seconds`."""

    def __init__(self, seconds: float, writers: list[asyncio.StreamWriter]) -> None:
        self._seconds, self._writers = seconds, writers
        self._timer: asyncio.TimerHandle | None = None
        self.active()

    def active(self) -> None:
        """Begin to count anew."""
        self.stop()
        if self._seconds:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._close)

    def stop(self) -> None:
        """Do not close them any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle: Idle) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            idle.active()
            writer.write(data)
            await writer.drain()
    writer.close()
