"""Blocks by HTTP range from URLs that a controller names. The URLs are not signed, so each block is checked here.

A URL that fails, stalls, or sends wrong or changing data is given up; its blocks are then requested over MQTT.
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
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

from device_agents.download.block_sources import Arrival, Inbox, WantedBlocks
from device_agents.download.gate import Gate
from device_agents.download.options import TransferTimings
from device_agents.threads import in_thread
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.errors import UnavailableError

log = logging.getLogger(__name__)

MAX_URLS = 4
MAX_URL_LENGTH = 4096  # presigned URLs are long
MAX_REDIRECTS = 3
MAX_FAILURES = 3
RUN_BLOCKS = 16
PATIENCE_SECONDS = 5.0
_PIECE_BYTES = 64 * 1024
_FINAL_STATUSES = (404, 403, 410, 416, 200)  # another attempt gives the same; 200: the server knows no ranges


class RangeError(UnavailableError):
    """A URL did not give the requested blocks; `final` when it must not be tried again."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def usable_urls(urls: Sequence[str]) -> list[str]:
    """The URLs that may be used: HTTP or HTTPS, with a host and without a user name; each once, at most MAX_URLS."""
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
        url: A URL that `usable_urls` returned.
        timings: Time-outs.
        clock: Gives monotonic seconds.

    Attributes:
        received: Bytes of all ranges so far, also of those that broke off.
    """

    def __init__(self, url: str, timings: TransferTimings, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._timings = timings
        self._clock = clock
        self._connection: http.client.HTTPConnection | None = None
        self._etag = ""
        self.received = 0

    def read(self, first: int, count: int) -> bytes:
        """Up to `count` blocks from block `first` on; fewer bytes at the end of the file.

        Raises:
            RangeError: the server did not answer with that range in time.
        """
        start, length = first * BLOCK_BYTES, count * BLOCK_BYTES
        try:
            return self._read(start, length, self._clock() + self._timings.http_range_seconds)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise RangeError(f"{_without_query(self._url)}: {error or type(error).__name__}") from error
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
            self._connection = self._connection or _connect(parts, self._timings.http_timeout_seconds)
            self._connection.request("GET", _target(parts), headers=self._headers(start, length))
            response = self._connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                self._follow(response.getheader("Location", ""))
                continue
            return self._body(response, start, length, deadline)
        raise RangeError(f"{_without_query(self._url)}: more than {MAX_REDIRECTS} redirects", final=True)

    def _headers(self, start: int, length: int) -> dict[str, str]:
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        return {**headers, "If-Range": self._etag} if self._etag else headers

    def _follow(self, location: str) -> None:
        self.close()
        target = urljoin(self._url, location)
        safe = not (self._url.startswith("https:") and not target.startswith("https:"))
        if not location or not usable_urls([target]) or not safe:
            raise RangeError(f"{_without_query(self._url)} redirects to {location[:80]!r}", final=True)
        self._url = target

    def _body(self, response: http.client.HTTPResponse, start: int, length: int, deadline: float) -> bytes:
        if response.status != 206:
            final = response.status in _FINAL_STATUSES
            raise RangeError(f"{_without_query(self._url)} answers {response.status}, expected 206", final=final)
        if not response.getheader("Content-Range", "").startswith(f"bytes {start}-"):
            raise RangeError(f"{_without_query(self._url)} sent another range than requested", final=True)
        etag = response.getheader("ETag", "")
        self._etag = etag if etag.startswith('"') and len(etag) < 200 and etag.isprintable() else self._etag
        data = bytearray()
        while len(data) < length and (piece := response.read1(min(_PIECE_BYTES, length - len(data)))):
            data += piece
            self.received += len(piece)
            if self._clock() > deadline:
                limit = self._timings.http_range_seconds
                raise RangeError(f"{_without_query(self._url)}: {len(data)} bytes in {limit:.0f} s")
        if response.read1(1) or not response.isclosed():
            self.close()  # the answer is longer than requested: the rest is not read
        return bytes(data)


class HttpRanges:
    """TransferSource over HTTP ranges: fetches from several URLs at once, and checks the hash of each block.

    Args:
        inbox: Receives the blocks; an arrival without data says that the last URL was given up.
        wanted: Blocks of the transfer.
        gate: Limits of the owner.
        hashes: sha256 (hex) of each block of the blob.
        counters: Gets `http_blocks` and `http_failures`.
        wasted: Called with the bytes that a URL sent and that are no blocks.
        timings: Time-outs of the HTTP requests.
        enabled: False to fetch from no URL.

    Attributes:
        enabled: Whether URLs are used.
    """

    def __init__(
        self,
        inbox: Inbox,
        wanted: WantedBlocks,
        gate: Gate,
        hashes: Sequence[str],
        counters: Counter[str],
        *,
        wasted: Callable[[int], None],
        timings: TransferTimings,
        enabled: bool,
    ) -> None:
        self._wasted = wasted
        self._inbox, self._wanted, self._gate, self._hashes = inbox, wanted, gate, hashes
        self._counters, self._timings = counters, timings
        self.enabled = enabled
        self._workers: set[asyncio.Task[None]] = set()
        self._readers: set[RangeReader] = set()
        self._room = asyncio.Semaphore(2 * RUN_BLOCKS)  # blocks in the inbox that are not written yet

    @property
    def active(self) -> bool:
        """True while some URL is being fetched from."""
        return bool(self._workers)

    @property
    def patience_seconds(self) -> float:
        """Time between two looks at the workers; they end by themselves and then put an arrival into the inbox."""
        return PATIENCE_SECONDS

    def start(self, urls: Sequence[str]) -> None:
        """Begin with every usable URL; nothing happens without one."""
        for url in usable_urls(urls):
            task = asyncio.get_running_loop().create_task(self._work(url))
            self._workers.add(task)
            task.add_done_callback(self._ended)

    async def request(self) -> None:
        """Nothing: the workers fetch by themselves."""

    async def accept(self, arrival: Arrival) -> bool:
        """True for a block that is still missing."""
        if not arrival.data:
            return False
        self._room.release()
        if arrival.index not in self._wanted.missing:
            return False
        self._wanted.arrived(arrival.index)
        return True

    async def on_silence(self) -> None:
        """Nothing: each worker has its own time-outs."""

    async def stop(self) -> None:
        """End every worker, and wait for the ranges that are being read."""
        workers = list(self._workers)
        for reader in self._readers:
            reader.abort()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._workers.discard(task)
        if not self._workers:
            self._inbox.put(Arrival(self))

    async def _work(self, url: str) -> None:
        reader, failures = RangeReader(url, self._timings), 0
        self._readers.add(reader)
        try:
            while failures < MAX_FAILURES and (run := await self._take_run()):
                try:
                    await self._fetch(reader, run)
                    failures = 0
                except RangeError as error:
                    failures = MAX_FAILURES if error.final else failures + 1
                    self._counters["http_failures"] += 1
                    log.warning("blocks by HTTP: %s", error)
        except UnavailableError as error:  # quiet hours; the next request over MQTT raises it too
            log.info("blocks by HTTP: %s", error)
        finally:
            self._readers.discard(reader)
            await in_thread(reader.close)

    async def _take_run(self) -> list[int]:
        """Blocks for one range, at the pace that the gate allows; empty when no block waits."""
        waiting = self._wanted.waiting()
        if not waiting:
            return []
        allowed = await self._gate.pass_blocks(min(RUN_BLOCKS, waiting), wait=True)
        return self._wanted.take_run(allowed)

    async def _fetch(self, reader: RangeReader, run: list[int]) -> None:
        left, before, used = list(run), reader.received, 0
        try:
            data = await in_thread(reader.read, run[0], len(run))
            for at, index in enumerate(run):
                block = data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]
                if hashlib.sha256(block).hexdigest() != self._hashes[index]:
                    raise RangeError(f"block {index} has a wrong hash", final=True)
                await self._room.acquire()
                left.remove(index)
                used += len(block)
                self._counters["http_blocks"] += 1
                self._inbox.put(Arrival(self, index, block))
        finally:
            self._wanted.put_back(left)
            if reader.received - before > used:
                self._wasted(reader.received - before - used)


def _connect(parts: SplitResult, timeout_seconds: float) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout_seconds, context=context)
    return http.client.HTTPConnection(host, parts.port, timeout=timeout_seconds)


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _without_query(url: str) -> str:
    """The URL for messages, without its query, which may hold a signature."""
    return url.partition("?")[0][:200]
