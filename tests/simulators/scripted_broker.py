"""A broker with scripted faults, which real brokers do not show on demand. It knows only the needed MQTT."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import NamedTuple

CONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, PINGREQ = 1, 3, 8, 10, 12


class Packet(NamedTuple):
    """One packet from a client; `body` excludes the fixed header."""

    kind: int
    flags: int
    body: bytes


class ScriptedBroker:
    """A broker on a free port of 127.0.0.1; an async context manager. Tests set its attributes at any time.

    Attributes:
        levels: Protocol levels that are accepted: 4 is MQTT 3.1.1, 5 is MQTT 5.
        hang_up: Close the connection on other levels without a CONNACK.
        reason: Reason code of CONNACK.
        properties: Encoded properties of CONNACK under MQTT 5, without their length.
        puback, suback: Reason code; None for no answer.
        reading: When cleared, the broker stops reading and TCP's buffers fill up.
        closing: Close each connection right after CONNACK.
        silent: Answer no packet.
        connects: Protocol level of each received CONNECT.
        packets: All other packets.
    """

    def __init__(self) -> None:
        self.levels = {4, 5}
        self.hang_up = False
        self.reason = 0
        self.properties = b""
        self.puback: int | None = 0
        self.suback: int | None = 0
        self.reading = asyncio.Event()
        self.reading.set()
        self.closing = False
        self.silent = False
        self.connects: list[int] = []
        self.packets: list[Packet] = []
        self.port = 0
        self._level = 5
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """URL of this broker."""
        return f"mqtt://127.0.0.1:{self.port}"

    def send(self, data: bytes) -> None:
        """Send raw bytes to every client."""
        for writer in self._writers:
            writer.write(data)

    def drop(self) -> None:
        """Close every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def of_kind(self, kind: int) -> list[Packet]:
        """The packets of one kind, in order."""
        return [packet for packet in self.packets if packet.kind == kind]

    async def __aenter__(self) -> ScriptedBroker:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            while await self._handle(await self._read(reader), writer):
                await writer.drain()
        except (OSError, EOFError):
            pass  # the client closed the connection
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Packet:
        await self.reading.wait()
        head = (await reader.readexactly(1))[0]
        length, shift = 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        return Packet(head >> 4, head & 15, await reader.readexactly(length))

    async def _handle(self, packet: Packet, writer: asyncio.StreamWriter) -> bool:
        if packet.kind == CONNECT:
            return self._accept(packet.body[6], writer)
        self.packets.append(packet)
        five = self._level == 5
        if packet.kind == PUBLISH and packet.flags & 6 and self.puback is not None:
            at = 2 + int.from_bytes(packet.body[:2], "big")
            reason = bytes([self.puback]) if five and self.puback else b""
            writer.write(bytes([0x40, 2 + len(reason)]) + packet.body[at : at + 2] + reason)
        elif packet.kind in (SUBSCRIBE, UNSUBSCRIBE) and self.suback is not None:
            codes = bytes([self.suback])
            body = packet.body[:2] + (b"\0" if five else b"") + codes
            writer.write(bytes([0x90 if packet.kind == SUBSCRIBE else 0xB0, len(body)]) + body)
        elif packet.kind == PINGREQ:
            writer.write(b"\xd0\x00")
        return True

    def _accept(self, level: int, writer: asyncio.StreamWriter) -> bool:
        self.connects.append(level)
        if self.silent:
            return True
        if level not in self.levels:
            if not self.hang_up:
                writer.write(b"\x20\x02\x00\x01")
            return False
        self._level = level
        body = bytes([0, self.reason]) + (bytes([len(self.properties)]) + self.properties if level == 5 else b"")
        writer.write(bytes([0x20, len(body)]) + body)
        return not self.reason and not self.closing
