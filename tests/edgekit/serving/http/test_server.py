"""The real server on loopback TCP and on a UNIX socket."""

from __future__ import annotations

import asyncio
import http.client
import socket
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from edgekit.errors import SettingsError, UnavailableError
from edgekit.serving.http.addresses import parse_address
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.oip import codec as oip
from tests.simulators.echo import Echo

VALUE = np.arange(30_000, dtype=np.float32)
REQUEST = oip.encode_request({"x": VALUE})


def post(connection: http.client.HTTPConnection) -> Any:
    connection.request("POST", "/v2/models/m/infer", REQUEST.body, REQUEST.headers)
    reply = connection.getresponse()
    body = reply.read()
    assert reply.status == 200, body
    return oip.parse_response(body, oip.header_length(reply.headers[oip.HEADER])).outputs["x"]


def unix_connection(path: Path) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("anything")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    return connection


async def test_tcp_and_unix_socket_answer_alike(tmp_path: Path) -> None:
    """Port 0 becomes a real port, the socket has mode 0660, connections are kept alive, and nothing remains."""
    path = tmp_path / "e.sock"
    async with serve(App(Echo(), max_request_bytes=2**20), http="127.0.0.1:0", socket=path) as bound:
        assert bound.socket == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        host, port = bound.url.removeprefix("http://").split(":")
        for connection in (http.client.HTTPConnection(host, int(port)), unix_connection(path)):
            for _ in range(2):
                np.testing.assert_array_equal(await asyncio.to_thread(post, connection), VALUE)
            connection.close()
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 1)


async def test_a_foreign_host_is_refused_over_tcp_only(tmp_path: Path) -> None:
    """The same foreign Host is refused over TCP and accepted on the UNIX socket."""
    path = tmp_path / "e.sock"
    async with serve(App(Echo(), max_request_bytes=10), http="127.0.0.1:0", socket=path) as bound:
        pool = urllib3.PoolManager(retries=False)
        reply = await asyncio.to_thread(pool.request, "GET", bound.url + "/v2", headers={"Host": "evil.example"})
        assert reply.status == 403
        connection = unix_connection(path)
        connection.request("GET", "/v2", headers={"Host": "evil.example"})
        assert (await asyncio.to_thread(connection.getresponse)).status == 200
        connection.close()
        pool.clear()


async def test_requests_that_run_are_finished_before_the_server_ends() -> None:
    """Leaving the block waits for a running request, and the client gets the complete answer."""
    echo = Echo()
    echo.gate.clear()
    async with serve(App(echo, max_request_bytes=2**20), http="127.0.0.1:0") as bound:
        host, port = bound.url.removeprefix("http://").split(":")
        asked = asyncio.ensure_future(asyncio.to_thread(post, http.client.HTTPConnection(host, int(port))))
        await echo.asked.wait()
        asyncio.get_running_loop().call_later(0.1, echo.gate.set)
    np.testing.assert_array_equal(await asked, VALUE)


async def test_a_dead_servers_socket_is_replaced_and_a_live_ones_is_not(tmp_path: Path) -> None:
    """A stale socket is replaced; a live server's socket, or a plain file at the path, is an error."""
    path = tmp_path / "e.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    app = App(Echo(), max_request_bytes=10)
    async with serve(app, socket=path) as bound:
        assert bound.url == ""
        with pytest.raises(UnavailableError, match="another server answers"):
            async with serve(app, socket=path):
                pass
        assert path.exists()
    path.write_text("mine")
    with pytest.raises(UnavailableError, match="is no socket"):
        async with serve(app, socket=path):
            pass
    assert path.read_text() == "mine"


async def test_a_taken_port_is_an_error_that_names_it(tmp_path: Path) -> None:
    """The address is in the message, and the UNIX socket of the failed start is not left behind."""
    app, path = App(Echo(), max_request_bytes=10), tmp_path / "e.sock"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=address):
            async with serve(app, http=address, socket=path):
                pass
    assert not path.exists()


@pytest.mark.parametrize("address", ["8600", "host:", ":80", "host:70000", "::1:80", "host:-1", "host:\u00b2"])
def test_a_malformed_address_is_refused(address: str) -> None:
    """The error shows the form that is expected."""
    with pytest.raises(SettingsError, match="expected host:port"):
        parse_address(address)


def test_addresses_are_parsed() -> None:
    """Names, IPv4 and bracketed IPv6."""
    assert parse_address("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_address("[::1]:8600") == ("::1", 8600)
