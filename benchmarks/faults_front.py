"""A TCP front before a real cloud tier, which can fail in every way that networks and servers do.

It counts the inference requests that reach it, also those that it does not answer, and TLS handshakes that fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from edgekit.serving.oip import codec as oip
from edgekit.serving.oip.codec import InferRequest, InferResponse
from edgekit.tensors import Array

INFER = b"/infer HTTP/1.1\r\n"
SLOW_SECONDS = 10.0
FLAP_SECONDS = 0.5
MODES = ("healthy", "down", "black hole", "slow", "half errors", "flapping", "wrong shapes", "NaN", "stale pool")


class Front:
    """Listens on a free port of loopback.

    Args:
        tier: URL of the real tier.
        outputs: A right answer of the model, from which wrong ones are made.

    Attributes:
        mode: One of MODES; `set_mode` changes it.
        arrivals: Monotonic seconds of each request.
    """

    def __init__(self, tier: str, outputs: dict[str, Array]) -> None:
        parts = urlsplit(tier)
        self._host, self._port_there = str(parts.hostname), int(parts.port or 0)
        self._outputs, self._numbers = outputs, itertools.count()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._stale: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.mode, self.port, self.begun = "healthy", 0, 0.0
        self.arrivals: list[float] = []

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    async def set_mode(self, mode: str) -> None:
        """Fail in another way from now on."""
        self.mode, self.begun = mode, time.monotonic()
        self._stale = set(self._writers) if mode == "stale pool" else set()
        if mode == "down":
            await self._stop()
        elif self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=2048)
            self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End."""
        await self._stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._requests(reader, writer)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                data = await _message(reader)
                if INFER in data:
                    self.arrivals.append(time.monotonic())
                if writer in self._stale:  # the server had forgotten the connection
                    return
                answer = await self._faulty()
                if answer is None:
                    there = there or await asyncio.open_connection(self._host, self._port_there)
                    there[1].write(data)
                    answer = await _message(there[0])
                if not answer:
                    return
                writer.write(answer)
                await writer.drain()
        finally:
            if there is not None:
                there[1].transport.abort()

    async def _faulty(self) -> bytes | None:
        """What the present fault answers; empty for a closed connection, None for the real tier's answer."""
        mode = self.mode
        if mode == "flapping":
            mode = "half errors" if int((time.monotonic() - self.begun) / FLAP_SECONDS) % 2 else "healthy"
            if mode != "healthy":
                return b""
        if mode == "black hole":
            await asyncio.sleep(3600)
        if mode == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        if mode == "half errors" and next(self._numbers) % 2:
            return b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"
        changes: dict[str, Callable[[Array], Array]] = {
            "wrong shapes": lambda value: value[..., :-1],
            "NaN": lambda value: value * float("nan"),
        }
        if mode in changes:
            wrong = {name: changes[mode](value) for name, value in self._outputs.items()}
            asked = InferRequest({}, binary_outputs=True)
            made = oip.encode_response(InferResponse("small", "1", wrong, {}), asked)
            head = "".join(f"{name}: {value}\r\n" for name, value in made.headers.items())
            return f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(made.body)}\r\n\r\n".encode() + bytes(made.body)
        return None


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP message with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    return head + (await reader.readexactly(int(found)) if found else b"")
