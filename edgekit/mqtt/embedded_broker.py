"""The amqtt broker inside this process, behind edgekit's own listener.

amqtt reads a CONNECT of MQTT 5 as if it were 3.1.1: it takes properties for strings and may wait for ever. So the
listener reads the version first, and answers other versions as the standard says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from amqtt.adapters import StreamWriterAdapter
from amqtt.broker import Broker

from edgekit.waiting import within

LISTENER = "default"
LEVEL = 4  # protocol level of MQTT 3.1.1
WRONG_VERSION = b"\x20\x02\x00\x01"  # CONNACK: unacceptable protocol version
HANDSHAKE_SECONDS = 10.0

log = logging.getLogger(__name__)


class EmbeddedAmqtt:
    """An amqtt broker on one TCP port. A restart loses all messages."""

    def __init__(self) -> None:
        for name in ("amqtt", "transitions"):
            # Off, because they log every dropped connection as an error with a traceback.
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._broker: Any = Broker(
            {
                "listeners": {LISTENER: {"type": "external", "bind": "external"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: the port cannot be used.
        """
        await self._broker.start()
        try:
            self._server = await asyncio.start_server(self._serve, host, port)
        except OSError:
            await self._broker.shutdown()
            raise

    async def stop(self) -> None:
        """End every connection and the listener."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        await self._broker.shutdown()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            head = await within(HANDSHAKE_SECONDS, _read_head(reader))
            if head[-1] == LEVEL:
                await self._broker.external_connected(_Reader(head, reader), StreamWriterAdapter(writer), LISTENER)
            else:
                writer.write(WRONG_VERSION)
                await writer.drain()
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            log.debug("a client was lost: %s", error)
        finally:
            self._writers.discard(writer)
            with contextlib.suppress(OSError):
                writer.close()


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    """Read a CONNECT up to its protocol level, inclusive.

    Raises:
        ValueError: the bytes are no CONNECT.
        EOFError: the client closed the connection.
    """
    head = await reader.readexactly(2)
    while head[-1] & 0x80 and len(head) < 5:
        head += await reader.readexactly(1)
    name = await reader.readexactly(6)
    if head[0] != 0x10 or name != b"\x00\x04MQTT":
        raise ValueError("not an MQTT CONNECT")
    return head + name + await reader.readexactly(1)


class _Reader:
    """amqtt's ReaderAdapter over a stream whose first bytes were already read."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader) -> None:
        self._head = head
        self._reader = reader

    async def read(self, n: int = -1) -> bytes:
        if not self._head:
            return await (self._reader.read() if n == -1 else self._reader.readexactly(n))
        taken, self._head = (self._head, b"") if n == -1 else (self._head[:n], self._head[n:])
        return taken if len(taken) == n else taken + await self.read(n if n == -1 else n - len(taken))

    def feed_eof(self) -> None:
        self._reader.feed_eof()
