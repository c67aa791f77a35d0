"""The entrance of a server: TLS, API keys of several owners, the access log, and the port for probes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc
import msgspec
import numpy as np
import pytest

from device_agents.inference.cloud.http_client import HttpClient, HttpReply, NoAnswerError
from edgekit.errors import SettingsError
from edgekit.serving.api.keys import Keys, parse_keys
from edgekit.serving.api.tls import ServerTls
from edgekit.serving.endpoints import Endpoints, open_endpoints
from edgekit.serving.grpc.messages import message
from edgekit.serving.http.access_log import client_address
from edgekit.serving.http.limits import Limits
from edgekit.serving.oip import codec as oip
from tests.simulators.echo import Echo
from tests.simulators.pki import Pki

KEY, OTHER = "key-of-the-north-1", "key-of-the-south-1"
KEYS = f'[keys.north]\nkeys = ["{KEY}"]\nrequests_per_day = 3\n[keys.south]\nkeys = ["{OTHER}"]\nmodels = ["x"]\n'
BODY = oip.encode_request({"x": np.ones(3, np.float32)})


async def infer(client: HttpClient, key: str = "", *, more: Sequence[tuple[str, str]] = ()) -> HttpReply:
    headers = {**BODY.headers, **({"Authorization": f"Bearer {key}"} if key else {}), **dict(more)}
    return await client.request("POST", "/v2/models/m/infer", headers=headers, body=BODY.body, timeout_seconds=10)


def trusting(pki: Pki, name: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pki.ca)
    if name:
        context.load_cert_chain(pki.folder / f"{name}.pem", pki.folder / f"{name}.key")
    return context


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path, names=("server", "device", "renewed"))


def server_tls(pki: Pki, *, client_ca: bool = False) -> ServerTls:
    return ServerTls(pki.folder / "server.pem", pki.folder / "server.key", pki.ca if client_ca else None)


async def test_http_and_grpc_speak_tls(pki: Pki) -> None:
    """Kept connections, early refusals and large bodies work as without TLS; plain clients get nothing."""
    addresses = Endpoints(url="127.0.0.1:0", grpc="127.0.0.1:0")
    tls = server_tls(pki)
    async with open_endpoints(Echo(), addresses, max_request_bytes=2**20, api_key=KEY, tls=tls) as opened:
        assert opened.url.startswith("https://127.0.0.1:")
        client = HttpClient(opened.url, tls=trusting(pki))
        for _ in range(3):
            assert (await infer(client, KEY)).status == 200
        assert (await infer(client, "wrong")).status == 401
        big = oip.encode_request({"x": np.ones(2**17, np.float32)})
        headers = {**big.headers, "Authorization": f"Bearer {KEY}"}
        reply = await client.request("POST", "/v2/models/m/infer", headers=headers, body=big.body, timeout_seconds=10)
        assert (reply.status, len(reply.body) > 2**19) == (200, True)
        client.close()
        for tls_of_client in (None, ssl.create_default_context()):
            url = opened.url if tls_of_client else opened.url.replace("https", "http")
            with pytest.raises((NoAnswerError, ssl.SSLError)):
                await infer(HttpClient(url, tls=tls_of_client), KEY)
        credentials = grpc.ssl_channel_credentials(pki.ca.read_bytes())
        async with grpc.aio.secure_channel(opened.grpc, credentials) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert await call(b"", timeout=10) == b"\x08\x01"


async def test_clients_need_a_certificate_where_their_authority_is_named(pki: Pki) -> None:
    """Over HTTP and gRPC; then no API key is needed."""
    addresses, tls = Endpoints(url="127.0.0.1:0", grpc="127.0.0.1:0"), server_tls(pki, client_ca=True)
    async with open_endpoints(Echo(), addresses, max_request_bytes=2**20, local_only=False, tls=tls) as opened:
        client = HttpClient(opened.url, tls=trusting(pki, "device"))
        assert (await infer(client)).status == 200
        client.close()
        with pytest.raises((NoAnswerError, ssl.SSLError)):
            await infer(HttpClient(opened.url, tls=trusting(pki)))
        for own, works in (((None, None), False), ((_key(pki), _pem(pki)), True)):
            credentials = grpc.ssl_channel_credentials(pki.ca.read_bytes(), *own)
            async with grpc.aio.secure_channel(opened.grpc, credentials) as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
                if works:
                    assert await call(b"", timeout=10) == b"\x08\x01"
                else:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await call(b"", timeout=2)


def _key(pki: Pki) -> bytes:
    return (pki.folder / "device.key").read_bytes()


def _pem(pki: Pki) -> bytes:
    return (pki.folder / "device.pem").read_bytes()


async def test_a_renewed_certificate_is_served_without_a_restart(pki: Pki) -> None:
    """A faulty pair is refused, and the one before stays in use."""
    tls, seen = server_tls(pki), []
    async with open_endpoints(Echo(), Endpoints(url="127.0.0.1:0"), max_request_bytes=99, tls=tls) as opened:
        host, _, port = opened.url.removeprefix("https://").rpartition(":")

        async def subject() -> None:
            _, writer = await asyncio.open_connection(host, int(port), ssl=trusting(pki))
            found = dict(pair for part in writer.get_extra_info("peercert")["subject"] for pair in part)
            seen.append(found["commonName"])
            writer.close()

        await subject()
        (pki.folder / "server.pem").write_bytes((pki.folder / "renewed.pem").read_bytes())
        with pytest.raises(SettingsError, match=r"server\.pem and .*server\.key cannot be used for TLS"):
            tls.reload()
        await subject()
        (pki.folder / "server.key").write_bytes((pki.folder / "renewed.key").read_bytes())
        tls.reload()
        await subject()
    assert seen == ["server", "server", "renewed"]


def test_files_that_are_no_pair_are_named(pki: Pki, tmp_path: Path) -> None:
    """Missing, locked by a password, or of another pair."""
    pki.lock("server", tmp_path / "locked.key")
    for key in ("none.key", "locked.key", "device.key"):
        with pytest.raises(SettingsError, match=key):
            ServerTls(tmp_path / "server.pem", tmp_path / key)


async def test_one_quota_holds_for_http_and_grpc(pki: Pki) -> None:
    """Requests with a repeated head count too, and metrics tell who asked and what was refused."""
    keys, addresses = Keys(parse_keys(KEYS)), Endpoints(url="127.0.0.1:0", grpc="127.0.0.1:0")
    async with open_endpoints(Echo(), addresses, max_request_bytes=2**20, keys=keys) as opened:
        client = HttpClient(opened.url)
        assert [(await infer(client, KEY)).status for _ in range(2)] == [200, 200]
        metadata = (("authorization", f"Bearer {KEY}"),)
        request = message("ModelInferRequest")(model_name="m").SerializeToString()
        async with grpc.aio.insecure_channel(opened.grpc) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            await call(request, metadata=metadata, timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request, metadata=metadata, timeout=10)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request, metadata=(("authorization", f"Bearer {OTHER}"),), timeout=10)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            request = message("ModelMetadataRequest")(name="m").SerializeToString()
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
            await call(request, metadata=metadata, timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request, metadata=(("authorization", f"Bearer {OTHER}"),), timeout=10)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        for key, status in ((KEY, 200), (OTHER, 403)):  # so that a device's check sees that its key is of no use
            found = await client.request(
                "GET", "/v2/models/m", headers={"Authorization": f"Bearer {key}"}, timeout_seconds=10
            )
            assert found.status == status
        late = await infer(client, KEY)
        assert (late.status, int(late.headers["retry-after"]) > 0) == (429, True)
        assert (await infer(client, OTHER)).status == 403
        text = await client.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout_seconds=10)
        for line in ('{key="north",outcome="requests"} 3', '{key="north",outcome="quota"} 2'):
            assert f"edgekit_key_requests_total{line}\n" in text.body.decode()
        keys.replace(parse_keys(OTHER))  # the connection is kept, and its head is known
        assert (await infer(client, KEY)).status == 401
        client.close()


async def test_each_request_is_a_line_of_the_log() -> None:
    """Who, what, how long; an address before a trusted proxy is believed. No line holds a key."""
    lines: list[bytes] = []
    limits, keys = Limits(trusted_proxies=("127.0.0.0/8",)), Keys(parse_keys(KEYS))
    async with open_endpoints(
        Echo(), Endpoints(url="127.0.0.1:0"), max_request_bytes=2**20, keys=keys, limits=limits, access_log=lines.append
    ) as opened:
        client = HttpClient(opened.url)
        await infer(client, KEY, more=[("X-Forwarded-For", "9.9.9.9, 10.1.2.3")])
        await infer(client, KEY)
        await infer(client, "wrong")
        await client.request("GET", "/v2/health/ready", headers={}, timeout_seconds=10)
        client.close()
    found = [msgspec.json.decode(line) for line in lines]
    assert [(one["client"], one["key"], one["status"]) for one in found] == [
        ("10.1.2.3", "north", 200),
        ("127.0.0.1", "north", 200),
        ("127.0.0.1", "", 401),
        ("127.0.0.1", "", 200),
    ]
    assert found[0].keys() == {
        *("time", "client", "key", "method", "path", "status", "version", "request_bytes", "response_bytes", "ms")
    }
    assert (found[0]["path"], found[0]["version"]) == ("/v2/models/m/infer", "1.0.0")
    assert found[0]["request_bytes"] == len(BODY.body)
    assert KEY.encode() not in b"".join(lines)


async def test_each_grpc_call_is_a_line_of_the_same_log() -> None:
    """With the names of its method and status; a call that is refused too."""
    lines: list[bytes] = []
    limits, keys = Limits(trusted_proxies=("127.0.0.0/8",)), Keys(parse_keys(KEYS))
    request = message("ModelInferRequest")(model_name="m").SerializeToString()
    async with (
        open_endpoints(
            Echo(),
            Endpoints(grpc="127.0.0.1:0"),
            max_request_bytes=2**20,
            keys=keys,
            limits=limits,
            access_log=lines.append,
        ) as opened,
        grpc.aio.insecure_channel(opened.grpc) as channel,
    ):
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        metadata = (("authorization", f"Bearer {KEY}"), ("x-forwarded-for", "9.9.9.9, 10.1.2.3"))
        answer = await call(request, metadata=metadata, timeout=10)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(request, metadata=(("authorization", "Bearer wrong"),), timeout=10)
    first, second = (msgspec.json.decode(line) for line in lines)
    assert (first["client"], first["key"], first["method"], first["status"]) == ("10.1.2.3", "north", "gRPC", "OK")
    assert first["path"] == "/inference.GRPCInferenceService/ModelInfer"
    assert (first["version"], first["request_bytes"], first["response_bytes"]) == ("1.0.0", len(request), len(answer))
    assert (second["client"], second["key"], second["status"]) == ("127.0.0.1", "", "UNAUTHENTICATED")
    assert KEY.encode() not in b"".join(lines)


def test_only_trusted_proxies_tell_addresses() -> None:
    """Each proxy appends the address that it saw, so the last one that is no proxy counts."""
    trusted = ("10.0.0.0/8", "::1/128")
    assert client_address("1.2.3.4", "9.9.9.9", trusted) == "1.2.3.4"
    assert client_address("10.0.0.1", "9.9.9.9, 1.2.3.4", trusted) == "1.2.3.4"
    assert client_address("10.0.0.1", "9.9.9.9, 1.2.3.4, 10.0.0.2", trusted) == "1.2.3.4"
    assert client_address("10.0.0.1", "", trusted) == "10.0.0.1"
    assert client_address("::1", "fe80::1", trusted) == "fe80::1"
    assert client_address("10.0.0.1", "not an address", trusted) == "not an address"
    assert client_address("", "9.9.9.9", trusted) == ""


async def test_probes_have_a_port_of_their_own(pki: Pki) -> None:
    """Health and metrics without TLS and key, and nothing else."""
    addresses = Endpoints(url="127.0.0.1:0", health="127.0.0.1:0")
    tls = server_tls(pki, client_ca=True)
    async with open_endpoints(Echo(), addresses, max_request_bytes=2**20, api_key=KEY, tls=tls) as opened:
        assert f"health {opened.health}" in str(opened)
        client = HttpClient(opened.health)

        async def get(path: str) -> int:
            headers = {"Host": "tier.example"}
            return (await client.request("GET", path, headers=headers, timeout_seconds=10)).status

        found = [await get(path) for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/v2", "/v2/models/m")]
        assert found == [200, 200, 200, 404, 404]
        assert (await infer(client, KEY)).status == 404
        client.close()


async def test_http_and_grpc_stop_together() -> None:
    """While a request over HTTP is still answered, gRPC takes no new one, and both answer what they accepted."""
    server, addresses = Echo(), Endpoints(url="127.0.0.1:0", grpc="127.0.0.1:0")
    server.gate.clear()
    request = message("ModelInferRequest")(model_name="m").SerializeToString()
    async with contextlib.AsyncExitStack() as stack:
        opened = await stack.enter_async_context(open_endpoints(server, addresses, max_request_bytes=2**20))
        client, channel = HttpClient(opened.url), grpc.aio.insecure_channel(opened.grpc)
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        accepted = [asyncio.ensure_future(infer(client)), asyncio.ensure_future(call(request, timeout=20))]
        await server.arrived(2)
        stopping = asyncio.ensure_future(stack.aclose())
        await asyncio.sleep(0.1)
        async with grpc.aio.insecure_channel(opened.grpc) as other:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await other.unary_unary("/inference.GRPCInferenceService/ModelInfer")(request, timeout=5)
        assert (caught.value.code(), server.requests) == (grpc.StatusCode.UNAVAILABLE, 2)
        server.gate.set()
        assert (await accepted[0]).status == 200
        await accepted[1]
        await stopping
        await channel.close()
        client.close()


async def test_grpcs_health_needs_no_key() -> None:
    """The service that Kubernetes asks: of the whole server, and of one model."""
    addresses = Endpoints(grpc="127.0.0.1:0")
    async with (
        open_endpoints(Echo(), addresses, max_request_bytes=99, api_key=KEY) as opened,
        grpc.aio.insecure_channel(opened.grpc) as channel,
    ):
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for asked in (b"", b"\x0a\x01m"):
            assert await check(asked, timeout=10) == b"\x08\x01"
