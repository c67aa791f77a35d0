"""A web server on loopback that serves one blob by ranges, correctly or with a chosen fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """One running server.

    Attributes:
        url: URL of the blob.
        mode: Its behaviour, the name of a method of `_Handler`.
        ranges: Received Range headers.
        sent: Bytes of the blob that were sent.
    """

    def __init__(self, blob: bytes, mode: str) -> None:
        self.blob, self.mode = blob, mode
        self.ranges: list[str] = []
        self.if_ranges: list[str | None] = []
        self.sent = 0
        self._counting = threading.Lock()  # each request has a thread
        self.asked = threading.Event()
        self.over = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.web = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/blob"

    def count(self, size: int) -> None:
        """Add to `sent`."""
        with self._counting:
            self.sent += size


@contextmanager
def web(blob: bytes, mode: str = "good") -> Iterator[Web]:
    """Run a server."""
    running = Web(blob, mode)
    thread = threading.Thread(target=running.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield running
    finally:
        running.over.set()
        running.server.shutdown()
        thread.join()
        running.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        web: Web = self.server.web  # type: ignore[attr-defined]
        web.ranges.append(self.headers["Range"])
        web.asked.set()
        web.if_ranges.append(self.headers["If-Range"])
        first, last = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
        data = web.blob[first : last + 1]
        try:
            getattr(self, f"_{web.mode.replace(' ', '_')}")(web, first, data)
        except (BrokenPipeError, ConnectionError):
            self.close_connection = True

    def _send(self, web: Web, status: int, first: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        fields = {
            "Content-Length": str(len(data)),
            "Content-Range": f"bytes {first}-{first + len(data) - 1}/{len(web.blob)}",
            "ETag": '"one"',
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        web.count(len(data))  # before the write: a client that has it all may look at once
        self.wfile.write(data)

    def _good(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 206, first, data)

    def _wrong(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 206, first, bytes(len(data)))

    def _late_wrong(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 206, first, data if len(web.ranges) < 3 else bytes(len(data)))

    def _short(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 206, first, data[: len(data) // 2])

    def _cut(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 206, first, data[: len(data) // 2], Content_Length=str(len(data)))
        self.close_connection = True

    def _whole(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 200, 0, web.blob)

    def _other_range(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 206, first + 1, data)

    def _absent(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 404, first, b"")

    def _broken(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 503, first, b"")

    def _sometimes_broken(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, *((503, first, b"") if len(web.ranges) % 2 else (206, first, data)))

    def _to_file(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 302, first, b"", Location="file:///etc/passwd")

    def _in_circles(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 302, first, b"", Location=self.path + "x")

    def _moved(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, *((206, first, data) if self.path == "/new" else (302, first, b"")), Location="/new")

    def _garbage(self, web: Web, first: int, data: bytes) -> None:
        self.wfile.write(b"\x00\xff not HTTP at all\r\n\r\n")
        self.close_connection = True

    def _many_headers(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 206, first, data, **{f"X_{number}": "y" for number in range(1000)})

    def _endless(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 206, first, data, Content_Length=str(1 << 50))
        while not web.over.is_set():
            self.wfile.write(bytes(65536))
            web.count(65536)

    def _silent(self, web: Web, first: int, data: bytes) -> None:
        web.over.wait(60)

    def _drip(self, web: Web, first: int, data: bytes) -> None:
        self._send(web, 206, first, b"", Content_Length=str(len(data)))
        while not web.over.is_set():
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.02)
