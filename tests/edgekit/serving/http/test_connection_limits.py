"""Which connections give way when there are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from device_agents.inference.cloud.http_client import HttpClient
from edgekit.serving.http.app import App
from edgekit.serving.http.connections import first_to_close
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.server import serve
from edgekit.serving.oip import codec as oip
from tests.simulators.echo import Echo

REQUEST = oip.encode_request({"x": np.ones(1, np.float32)})
KEY = "a-key-of-the-test"


class Idle(NamedTuple):
    """An idle connection, for the rule."""

    name: str
    age: tuple[int, float]
    idle: bool = True
    deadline: float = 0.0
    peer: str = ""


def chosen(open_ones: Sequence[Idle], limit: int) -> str:
    found = first_to_close(open_ones, 100.0, limit, Limits())  # type: ignore[arg-type]
    return found.name if isinstance(found, Idle) else ""


def test_strangers_go_first_then_the_longest_idle_and_newcomers_last() -> None:
    """Unless the newcomers are a flood."""
    silent, new, newer = Idle("silent", (0, 90.0)), Idle("new", (0, 99.8)), Idle("newer", (0, 99.9))
    old, recent = Idle("old", (2, 10.0)), Idle("recent", (2, 99.0))
    assert chosen([old, recent, new, silent], 4) == "silent"
    assert chosen([recent, old, new], 4) == "old"
    assert chosen([new, newer], 8) == "new"
    assert chosen([old, new, newer], 3) == "new"
    assert chosen([Idle("probe", (1, 50.0)), silent], 4) == "silent"
    assert chosen([], 3) == ""


def head(key: str) -> bytes:
    lines = ["POST /v2/models/m/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(REQUEST.body)}"]
    lines += [f"{name}: {value}" for name, value in REQUEST.headers.items()] + [f"Authorization: Bearer {key}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + REQUEST.body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str = KEY) -> int:
    writer.write(head(key))
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(answer.split()[1])


async def test_more_devices_than_places_are_all_answered(tmp_path: Path) -> None:
    """Kept-alive devices beyond the limit: every newcomer gets its answer, and the longest idle one gives way."""
    limits = Limits(connections=20)
    async with serve(App(Echo(), max_request_bytes=2**20, api_key=KEY), http="127.0.0.1:0", limits=limits) as bound:
        host, _, port = bound.url.removeprefix("http://").rpartition(":")
        opened = []

        async def device() -> int:
            opened.append(await asyncio.open_connection(host, int(port)))
            return await ask(*opened[-1])

        for _ in range(20):
            found = await asyncio.gather(*(device() for _ in range(3)))
            assert found == [200] * 3
        for _, writer in opened:
            writer.close()


async def test_one_address_has_its_own_limit_unless_it_is_a_trusted_proxy() -> None:
    """Above it, the address's own idle connections give way."""
    for trusted, left in (((), 3), (("127.0.0.1",), 5)):
        limits = Limits(peer_connections=3, trusted_proxies=trusted)
        async with serve(App(Echo(), max_request_bytes=2**20, api_key=KEY), http="127.0.0.1:0", limits=limits) as bound:
            host, _, port = bound.url.removeprefix("http://").rpartition(":")
            opened = []
            for _ in range(5):
                opened.append(await asyncio.open_connection(host, int(port)))
                assert await ask(*opened[-1]) == 200
            await asyncio.sleep(0.1)
            assert sum(not reader.at_eof() for reader, _ in opened) == left
            for _, writer in opened:
                writer.close()


async def test_strangers_do_not_lock_devices_or_local_applications_out(tmp_path: Path) -> None:
    """Wrong keys are closed; connections that only asked for health and then stay silent give way."""
    socket, limits = tmp_path / "s.sock", Limits(connections=6, fresh_seconds=0.0)
    app = App(Echo(), max_request_bytes=2**20, api_key=KEY)
    async with serve(app, http="127.0.0.1:0", socket=socket, limits=limits) as bound:
        host, _, port = bound.url.removeprefix("http://").rpartition(":")
        device = await asyncio.open_connection(host, int(port))
        assert await ask(*device) == 200
        wrong = await asyncio.open_connection(host, int(port))
        assert await ask(*wrong, key="wrong") == 401
        assert await asyncio.wait_for(wrong[0].read(), 10) == b""
        strangers = [await asyncio.open_connection(host, int(port)) for _ in range(10)]
        for reader, writer in strangers:
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.wait({asyncio.ensure_future(reader.read(10))}, timeout=1)
        assert await ask(*await asyncio.open_connection(host, int(port))) == 200
        assert await ask(*device) == 200
        assert await ask(*await asyncio.open_unix_connection(str(socket))) == 200
        for _, writer in (*strangers, device, wrong):
            writer.close()


async def test_hundreds_of_devices_with_kept_connections_lose_no_request() -> None:
    """400 of the device's own clients and 256 places: a device whose connection gave way sends again on a new one."""
    request = ("POST", "/v2/models/m/infer")
    headers = {**REQUEST.headers, "Authorization": f"Bearer {KEY}"}
    async with serve(App(Echo(), max_request_bytes=2**20, api_key=KEY), http="127.0.0.1:0", limits=Limits()) as bound:
        devices = [HttpClient(bound.url) for _ in range(400)]

        async def ask(device: HttpClient) -> int:
            reply = await device.request(*request, headers=headers, body=REQUEST.body, timeout_seconds=30)
            return reply.status

        for _ in range(3):
            for start in range(0, len(devices), 50):
                assert await asyncio.gather(*map(ask, devices[start : start + 50])) == [200] * 50
        for device in devices:
            device.close()


async def test_hundreds_of_silent_strangers_do_not_lock_devices_out() -> None:
    """300 connections that send nothing, or half of a header, while 20 devices go on and 20 more come."""
    async with serve(App(Echo(), max_request_bytes=2**20, api_key=KEY), http="127.0.0.1:0", limits=Limits()) as bound:
        host, _, port = bound.url.removeprefix("http://").rpartition(":")
        devices = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        assert [await ask(*one) for one in devices] == [200] * 20
        strangers = []
        for number in range(300):
            strangers.append(await asyncio.open_connection(host, int(port)))
            if number % 2:
                strangers[-1][1].write(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: ")
        assert [await ask(*one) for one in devices] == [200] * 20
        more = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        assert [await ask(*one) for one in more] == [200] * 20
        assert [await ask(*one) for one in devices] == [200] * 20
        for _, writer in (*devices, *more, *strangers):
            writer.close()
