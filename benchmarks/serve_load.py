"""Server processes and a client for the serving benchmarks: CPU time, memory, requests and answers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgekit.serving.oip import codec as oip

CONNECTIONS = 16
REQUESTS = 640  # per turn, over all connections
WARM_UP = 160
FORMS = ("binary", "JSON")


class Server(NamedTuple):
    """A running server and its address.

    Attributes:
        name: Name in the table.
        pid: Its first process; descendants are counted too.
        family, address: Address family and address of its socket.
        requests: The bytes of one small request, for each form that the server accepts.
    """

    name: str
    pid: int
    family: int
    address: Any
    requests: dict[str, bytes]


@contextlib.contextmanager
def process(command: list[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a server process; end it and its descendants with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more) as running:
        try:
            yield running
        finally:
            family = tree(running.pid)
            running.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(10)
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(server: Server, form: str, seconds: float = 60) -> None:
    """Wait until a server answers a request.

    Raises:
        TimeoutError: the server did not answer within `seconds`.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, AssertionError), connected(server, 1) as (one,):
            one.sendall(server.requests[form])
            read_answer(one)
            return
        time.sleep(0.02)
    raise TimeoutError(f"{server.name} did not start")


@contextlib.contextmanager
def connected(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """Open `count` connections; close them with the block."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(server.family)) for _ in range(count)]
        for one in sockets:
            one.settimeout(30)
            one.connect(server.address)
        yield sockets


# --- CPU time and memory


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            children.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(
                int(entry.name)
            )
    family = [pid]
    for one in family:
        family += children.get(one, [])
    return family


def cpu_ns(pid: int) -> int:
    """CPU nanoseconds of a process and its descendants: the sum over their threads in schedstat."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            total += sum(int((t / "schedstat").read_text().split()[0]) for t in Path(f"/proc/{one}/task").iterdir())
    return total


def pss_mb(pid: int) -> float:
    """PSS of a process and its descendants in MB: shared pages are divided between the processes that share them."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


# --- requests


def oip_requests(forms: tuple[str, ...] = FORMS, *, with_id: bool = False) -> dict[str, bytes]:
    """Inference requests of the Open Inference Protocol with one row of 64 numbers, in each form."""
    x = np.random.default_rng(1).random((1, 64)).astype(np.float32)
    requests = {}
    for form in forms:
        body, length = oip.encode_request({"x": x}, binary=form == "binary")
        if with_id:  # KServe answers 500 to a request without an id
            size = len(body) if length is None else length
            text = msgspec.json.encode({"id": "1", **msgspec.json.decode(body[:size])})
            body, length = text + body[size:], None if length is None else len(text)
        requests[form] = wire("/v2/models/m/infer", body, oip.Encoded(body, length).headers)
    return requests


def own_route_requests() -> dict[str, bytes]:
    """The same row as JSON for servers with the route ``/predict``."""
    x = np.random.default_rng(1).random((1, 64)).astype(np.float32)
    return {"JSON": wire("/predict", msgspec.json.encode({"x": x.tolist()}), {"Content-Type": "application/json"})}


def wire(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """The bytes of a POST request."""
    head = "".join(f"{n}: {v}\r\n" for n, v in {"Host": "localhost", "Content-Length": len(body), **headers}.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def ask(connections: list[socket.socket], request: bytes, count: int) -> None:
    """Send `count` requests over all connections at once; each connection has one request in flight."""
    for _ in range(count // len(connections)):
        for connection in connections:
            connection.sendall(request)
        for connection in connections:
            read_answer(connection)


def read_answer(connection: socket.socket) -> None:
    """Read one answer; its status must be 200."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        assert part, "the server closed the connection"
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), data
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if b"content-length" not in fields:
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(65536)
        return
    missing = int(fields[b"content-length"]) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536))


def turn(server: Server, form: str) -> float:
    """CPU microseconds of the server per request."""
    with connected(server, CONNECTIONS) as connections:
        ask(connections, server.requests[form], WARM_UP)
        before = cpu_ns(server.pid)
        ask(connections, server.requests[form], REQUESTS)
        return (cpu_ns(server.pid) - before) / REQUESTS / 1000
