"""Blocks by HTTP range from URLs that a controller hints at: nobody vouches for them, so each block is checked here.

A URL that fails, lies, stalls or changes its mind is given up; its blocks go back to those that are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

from device_agents.control.requests import Exchange
from device_agents.threads import in_thread
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import UnavailableError
from edgekit.mqtt.messages import Answer

log = logging.getLogger(__name__)

FETCHED = "http"  # the request id of what came this way; ids from the network are longer
MAX_URLS = 4
MAX_URL_LENGTH = 4096  # presigned ones are long
MAX_REDIRECTS = 3
MAX_FAILURES = 3
RUN_BLOCKS = 16
TIMEOUT_SECONDS = 10.0  # for a connection, and for each part of an answer
RUN_SECONDS = 60.0  # for one range as a whole
_PIECE_BYTES = 64 * 1024
_LEAVE = (404, 403, 410, 416, 200)  # what trying again does not mend; 200 is a server that knows no ranges


class RangeError(UnavailableError):
    """A URL did not give what it should; `final` where it is not asked again."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def usable_urls(urls: Sequence[str]) -> list[str]:
    """Those that may be fetched from: HTTP or HTTPS, with a host and without a password, each once."""
    return [url for url in dict.fromkeys(urls) if len(url) <= MAX_URL_LENGTH and _is_usable(url)][:MAX_URLS]


def _is_usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_a_number = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    web = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.username
    return plain and web and port_is_a_number


class RangeReader:
    """One URL, read by ranges over one connection. It blocks, so it is called in a thread.

    Args:
        url: As `usable_urls` gave it.
        clock: Monotonic seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._connection: http.client.HTTPConnection | None = None
        self._etag = ""

    def read(self, first: int, count: int) -> bytes:
        """Up to `count` blocks from block `first` on; fewer bytes at the end of the file.

        Raises:
            RangeError: the server did not answer with that range, in time.
        """
        start, length = first * BLOCK_BYTES, count * BLOCK_BYTES
        try:
            return self._read(start, length, self._clock() + RUN_SECONDS)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise RangeError(f"{_shown(self._url)}: {error or type(error).__name__}") from error
        except RangeError:
            self.close()
            raise

    def close(self) -> None:
        """End the connection; `read` makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """Make a `read` in another thread fail now."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _read(self, start: int, length: int, deadline: float) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(self._url)
            self._connection = self._connection or _connect(parts)
            self._connection.request("GET", _target(parts), headers=self._headers(start, length))
            response = self._connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                self._follow(response.getheader("Location", ""))
                continue
            return self._body(response, start, length, deadline)
        raise RangeError(f"{_shown(self._url)}: more than {MAX_REDIRECTS} redirects", final=True)

    def _headers(self, start: int, length: int) -> dict[str, str]:
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        return {**headers, "If-Range": self._etag} if self._etag else headers

    def _follow(self, location: str) -> None:
        self.close()
        target = urljoin(self._url, location)
        safe = not (self._url.startswith("https:") and not target.startswith("https:"))
        if not location or not usable_urls([target]) or not safe:
            raise RangeError(f"{_shown(self._url)} redirects to {location[:80]!r}", final=True)
        self._url = target

    def _body(self, response: http.client.HTTPResponse, start: int, length: int, deadline: float) -> bytes:
        if response.status != 206:
            final = response.status in _LEAVE
            raise RangeError(f"{_shown(self._url)} answers {response.status}, expected 206", final=final)
        if not response.getheader("Content-Range", "").startswith(f"bytes {start}-"):
            raise RangeError(f"{_shown(self._url)} sends another range than asked for", final=True)
        etag = response.getheader("ETag", "")
        self._etag = etag if etag.startswith('"') and len(etag) < 200 and etag.isprintable() else self._etag
        data = bytearray()
        while len(data) < length and (piece := response.read1(min(_PIECE_BYTES, length - len(data)))):
            data += piece
            if self._clock() > deadline:
                raise RangeError(f"{_shown(self._url)}: {len(data)} bytes in {RUN_SECONDS:.0f} s")
        if response.read1(1) or not response.isclosed():
            self.close()  # what is left of an endless answer is not read
        return bytes(data)


class RangeSources:
    """Fetches blocks from several URLs at once and puts the right ones into an exchange.

    Args:
        exchange: Where they go, as answers to FETCHED; an answer without data says that the last URL was given up.
        hashes: sha256 (hex) of each block of the blob.
        take: Takes up to so many neighbouring blocks to fetch from those that wait, at the pace that is allowed; none
            when nothing waits.
        give_back: Lets others have them.
        counters: Gets `http_blocks` and `http_failures`.
    """

    def __init__(
        self,
        exchange: Exchange,
        hashes: Sequence[str],
        take: Callable[[int], Awaitable[list[int]]],
        give_back: Callable[[list[int]], None],
        counters: Counter[str],
    ) -> None:
        self._exchange, self._hashes, self._take, self._give_back = exchange, hashes, take, give_back
        self._counters = counters
        self._workers: set[asyncio.Task[None]] = set()
        self._readers: set[RangeReader] = set()
        self._room = asyncio.Semaphore(2 * RUN_BLOCKS)  # blocks that wait to be written

    @property
    def working(self) -> bool:
        """True while some URL is being fetched from."""
        return bool(self._workers)

    def start(self, urls: Sequence[str]) -> None:
        """Begin with every usable URL; nothing happens where there is none."""
        for url in usable_urls(urls):
            task = asyncio.get_running_loop().create_task(self._work(url))
            self._workers.add(task)
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End every worker, and wait for the ranges that are under way."""
        workers = list(self._workers)
        for reader in self._readers:
            reader.abort()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._workers.discard(task)
        if not self._workers:
            self._exchange.queue.put_nowait(Answer(FETCHED))

    def taken(self) -> None:
        """One block of those in the exchange was taken out."""
        self._room.release()

    async def _work(self, url: str) -> None:
        reader, failures = RangeReader(url), 0
        self._readers.add(reader)
        try:
            while failures < MAX_FAILURES and (run := await self._take(RUN_BLOCKS)):
                try:
                    await self._fetch(reader, run)
                    failures = 0
                except RangeError as error:
                    failures = MAX_FAILURES if error.final else failures + 1
                    self._counters["http_failures"] += 1
                    log.warning("blocks by HTTP: %s", error)
        except UnavailableError as error:  # quiet hours; whoever asks next says so
            log.info("blocks by HTTP: %s", error)
        finally:
            self._readers.discard(reader)
            await in_thread(reader.close)

    async def _fetch(self, reader: RangeReader, run: list[int]) -> None:
        left = list(run)
        try:
            data = await in_thread(reader.read, run[0], len(run))
            for at, index in enumerate(run):
                block = data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]
                if hashlib.sha256(block).hexdigest() != self._hashes[index]:
                    raise RangeError(f"block {index} is wrong", final=True)
                await self._room.acquire()
                left.remove(index)
                self._counters["http_blocks"] += 1
                self._exchange.queue.put_nowait(Answer(FETCHED, index=index, data=block))
        finally:
            self._give_back(left)


def _connect(parts: SplitResult) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT_SECONDS, context=context)
    return http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_SECONDS)


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _shown(url: str) -> str:
    """Without the query, which may hold a signature."""
    return url.partition("?")[0][:200]
