"""The cloud client over real connections: a real cloud tier, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import urllib3

from device_agents.inference.cloud.failures import CloudOverloadedError, CloudRefusedError
from device_agents.inference.cloud_client import CloudClient, retry_after_seconds
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from edgekit.errors import CloudError, SettingsError
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.oip import codec as oip
from tests.simulators.small_models import SURE, UNSURE, onnx_bundle, softmax

KEY = "a-key-of-the-test"


@asynccontextmanager
async def cloud_tier(folder: Path, *, address: str = "127.0.0.1:0", key: str = KEY) -> AsyncIterator[str]:
    """A real cloud tier with the model ``big`` (tag 99); its URL."""
    bundle = onnx_bundle(folder, name="big", batch=None, gain=10.0, tag=99.0)
    models = await CloudModels.open(["big"], lambda name: (bundle, folder), threads=1)
    async with serve(App(models, max_request_bytes=2**20, api_key=key), http=address) as bound:
        yield bound.url
    await models.close()


@contextmanager
def client(url: str, *, model: str = "big", key: str = KEY) -> Iterator[CloudClient]:
    made = CloudClient(url, model=model, api_key=key)
    yield made
    made.close()


async def test_a_real_cloud_tier_answers(tmp_path: Path) -> None:
    """The configured model name is asked with the key, and binary tensors come back."""
    async with cloud_tier(tmp_path) as url:
        with client(url + "/") as cloud:
            for _ in range(3):
                found = (await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5)).outputs
                np.testing.assert_allclose(found["scores"], softmax(UNSURE, 10.0), atol=1e-6)


async def test_what_the_tier_refuses_is_told_apart_from_its_absence(tmp_path: Path) -> None:
    """A wrong key, model or input is a refusal with the tier's own words; nobody there is not."""
    async with cloud_tier(tmp_path) as url:
        for model, key, inputs, says in (
            ("big", "wrong", {"x": SURE}, "401: the API key is missing or wrong"),
            ("huge", KEY, {"x": SURE}, "404: there is no model 'huge'"),
            ("big", KEY, {"x": SURE.astype(np.float64)}, "400: x: dtype is float64, expected float32"),
        ):
            with client(url, model=model, key=key) as cloud, pytest.raises(CloudRefusedError, match=says):
                await cloud.infer("small", inputs, timeout_seconds=5)
    with client(url) as cloud, pytest.raises(CloudError, match="cannot be reached") as caught:
        await cloud.infer("small", {"x": SURE}, timeout_seconds=5)
    assert not isinstance(caught.value, CloudRefusedError)


@contextmanager
def misbehaving(act: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A TCP server that reads one request and then does `act`; its URL."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                try:
                    act(connection, stop)
                except OSError:
                    return  # the client has left, as it should

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join(60)


def answering(data: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def act(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(data)

    return act


def never(connection: socket.socket, stop: threading.Event) -> None:
    stop.wait(60)


def dripping(connection: socket.socket, stop: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not stop.wait(0.02):
        connection.sendall(b"x")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (never, "did not answer|cannot be reached"),
        (dripping, "did not answer|too slowly|cannot be reached"),
        (answering(b""), "cannot be reached"),
        (answering(b"SSH-2.0-nonsense\r\n\r\n"), "cannot be reached"),
        (answering(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops"), "answered 500: b'oops'"),
        (answering(b"HTTP/1.1 503 Away\r\nContent-Length: 16\r\n\r\n" + b'{"error": "not"}'), "answered 503: not"),
        (
            answering(b"HTTP/1.1 302 Moved\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n"),
            "answered 302: .*http://x/",
        ),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), "cannot be used"),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}"), "cannot be reached"),
        (answering(f"HTTP/1.1 200 OK\r\n{oip.HEADER}: 99\r\nContent-Length: 2\r\n\r\n{{}}".encode()), "cannot be used"),
    ],
)
async def test_a_misbehaving_server_is_a_cloud_error_in_time(
    act: Callable[[socket.socket, threading.Event], None], says: str
) -> None:
    """Silence, dripping, nonsense, lies and failures all end as CloudError; none hangs."""
    with misbehaving(act) as url, client(url) as cloud, pytest.raises(CloudError, match=says) as caught:
        await cloud.infer("small", {"x": SURE}, timeout_seconds=1.5)
    assert not isinstance(caught.value, CloudRefusedError)


async def test_a_server_that_has_moved_for_good_is_a_refusal_that_names_the_new_place() -> None:
    """A proxy that sends http:// to https:// does so for every request, and a person must mend the setting."""
    moved = answering(b"HTTP/1.1 308 Moved\r\nLocation: https://tier.example/v2\r\nContent-Length: 0\r\n\r\n")
    says = r"308: a redirect to 'https://tier.example/v2'.*cloud_url"
    with misbehaving(moved) as url, client(url) as cloud, pytest.raises(CloudRefusedError, match=says):
        await cloud.infer("small", {"x": SURE}, timeout_seconds=1.5)


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "nul\0"])
def test_a_key_that_no_header_can_hold_is_refused_at_once(key: str) -> None:
    """It would end each request that needs the cloud tier, although the device has an answer."""
    with pytest.raises(SettingsError, match="API key for the cloud tier is not one line") as caught:
        CloudClient("http://127.0.0.1:1", api_key=key)
    assert "cloud_api_key_file" in caught.value.advice
    assert key not in str(caught.value)


class HeldClock:
    """Clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0


async def test_fallback_survives_the_cloud_tiers_stop_and_resumes_after_its_return(tmp_path: Path) -> None:
    """Over real HTTP on both sides: cloud, then degraded without a lost answer, then cloud again by itself."""
    manifest = onnx_bundle(tmp_path / "small", tag=1.0)
    clock = HeldClock()
    pool = urllib3.PoolManager(retries=False, timeout=10)
    request = oip.encode_request({"x": UNSURE})

    def ask(url: str) -> tuple[str, float]:
        reply = pool.request("POST", f"{url}/v2/models/small/infer", body=request.body, headers=request.headers)
        assert reply.status == 200, reply.data
        found = oip.parse_response(reply.data, oip.header_length(reply.headers[oip.HEADER]))
        return found.parameters["edgekit_route"], float(found.outputs["tag"][0, 0])

    async with cloud_tier(tmp_path / "big") as url:
        pass  # a free port that is known
    with client(url) as cloud:
        async with (
            InferenceService(cloud=cloud, clock=clock, service=ServiceOptions(cloud_timeout_seconds=5.0)) as service,
            serve(App(service, max_request_bytes=2**20), http="127.0.0.1:0") as device,
        ):
            await service.activate("small", manifest, tmp_path / "small")
            address = url.removeprefix("http://")
            async with cloud_tier(tmp_path / "big", address=address):
                assert await asyncio.to_thread(ask, device.url) == ("cloud", 99.0)
            for _ in range(5):
                assert await asyncio.to_thread(ask, device.url) == ("degraded", 1.0)
            async with cloud_tier(tmp_path / "big", address=address):
                clock.now += 1.0
                assert await asyncio.to_thread(ask, device.url) == ("cloud", 99.0)
    pool.clear()


Handler = Callable[[bytes, bytes], bytes]


@asynccontextmanager
async def foreign_server(answer: Handler) -> AsyncIterator[str]:
    """A server that answers every request with the JSON of ``answer(head, body)``; None there means 422."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                writer.write(answer(head, await reader.readexactly(length)))
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


def reply(document: bytes, status: str = "200 OK", extra: bytes = b"", head: str = "") -> bytes:
    lines = f"HTTP/1.1 {status}\r\nContent-Length: {len(document) + len(extra)}\r\n{head}\r\n"
    return lines.encode() + document + extra


# As KServe 0.21 answers: null where the protocol has text or an object.
KSERVE = (
    b'{"model_name":"big","model_version":null,"id":"1f","parameters":null,"outputs":[{"name":"scores","shape":[1,3],'
    b'"datatype":"FP32","parameters":null,"data":[0.1,0.2,0.7]}]}'
)
# As MLServer 1.7.1 answers a binary body.
MLSERVER = b'{"detail":[{"type":"json_invalid","loc":["body",0],"msg":"JSON decode error"}]}'


async def test_an_answer_with_null_members_is_read() -> None:
    """KServe's own server sends them."""
    async with foreign_server(lambda head, body: reply(KSERVE)) as url:
        with client(url) as cloud:
            found = await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5)
    np.testing.assert_allclose(found.outputs["scores"], [[0.1, 0.2, 0.7]], atol=1e-6)
    assert (found.version, found.digest) == ("", "")


async def test_a_server_without_binary_tensors_gets_json_from_then_on() -> None:
    """The first request is sent twice, the next ones once, in JSON."""
    heads = []

    def answer(head: bytes, body: bytes) -> bytes:
        heads.append(oip.HEADER.lower().encode() in head.lower())
        return reply(MLSERVER, "422 Unprocessable Entity") if heads[-1] else reply(KSERVE)

    async with foreign_server(answer) as url:
        with client(url) as cloud:
            for _ in range(3):
                await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5)
    assert heads == [True, False, False, False]


async def test_a_server_that_refuses_both_forms_is_asked_in_json_once() -> None:
    """Its refusal is about the request, so that no second upload is made for every further one."""
    forms = []

    def answer(head: bytes, body: bytes) -> bytes:
        forms.append(oip.HEADER.lower().encode() in head.lower())
        return reply(b'{"error": "x has 4 columns"}', "400 Bad Request")

    async with foreign_server(answer) as url:
        with client(url) as cloud:
            for _ in range(3):
                with pytest.raises(CloudRefusedError, match="400: x has 4 columns"):
                    await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5)
    assert forms == [True, False, True, True]


@pytest.mark.parametrize("refusal", ["400 Bad Request", "404 Not Found", "500 Internal Server Error"])
async def test_a_server_without_binary_tensors_is_asked_in_json_again_after_a_failure(refusal: str) -> None:
    """Its model was not there yet. For ten minutes it got the form only that it cannot read."""
    forms = []

    def answer(head: bytes, body: bytes) -> bytes:
        forms.append("binary" if oip.HEADER.lower().encode() in head.lower() else "json")
        if forms[-1] == "binary":
            return reply(MLSERVER, "422 Unprocessable Entity")
        return reply(b'{"error": "no model yet"}', refusal) if len(forms) <= 4 else reply(KSERVE)

    async with foreign_server(answer) as url:
        with client(url) as cloud:
            for _ in range(2):
                with pytest.raises(CloudError, match=f"{refusal[:3]}: no model yet"):
                    await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5)
            for _ in range(2):
                await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5)
    assert forms == ["binary", "json"] * 3 + ["json"]


async def test_a_second_request_in_json_is_within_the_retry_budget() -> None:
    """A server that fails gets no second upload for every request."""
    forms = []

    def answer(head: bytes, body: bytes) -> bytes:
        forms.append("binary" if oip.HEADER.lower().encode() in head.lower() else "json")
        return reply(b"", "500 Internal Server Error")

    async with foreign_server(answer) as url:
        cloud = CloudClient(url, model="big", may_retry=lambda: False)
        for _ in range(3):
            with pytest.raises(CloudError, match="500"):
                await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5)
        cloud.close()
    assert forms == ["binary", "json", "binary", "binary"]


async def test_an_output_that_nobody_needs_may_be_anything() -> None:
    """Unknown datatypes, impossible shapes and foreign bytes of other outputs are skipped, in JSON and in binary."""
    odd = b'{"name":"odd","shape":[-1],"datatype":"BF16","parameters":{"binary_data_size":6}}'
    scores = b'{"name":"scores","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}}'
    document = b'{"outputs":[{"name":null},' + odd + b"," + scores + b"]}"
    data = b"abcdef" + np.array([0.1, 0.2, 0.7], np.float32).tobytes()
    binary = reply(document, extra=data, head=f"{oip.HEADER}: {len(document)}\r\n")
    async with foreign_server(lambda head, body: binary) as url:
        with client(url) as cloud:
            for wanted in (["scores"], None):
                found = await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5, wanted=wanted)
                assert list(found.outputs) == ["scores"]
            with pytest.raises(CloudError, match=r"shape of odd|odd: datatype"):
                await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5, wanted=["odd"])


@pytest.mark.parametrize(
    "odd",
    [
        b'{"name":"odd","shape":[1],"datatype":[],"data":[1]}',
        b'{"name":"odd","shape":[1],"datatype":"FP32"}',
        b'{"name":"odd","datatype":"FP32","parameters":{"shared_memory_region":"r","shared_memory_byte_size":4}}',
        b'{"name":"odd","data":[1],"parameters":[]}',
    ],
)
async def test_members_that_nobody_needs_may_have_any_form(odd: bytes) -> None:
    """Other outputs without data, with odd members; a version that is a number; parameters that are no object."""
    scores = b'{"name":"scores","shape":[1,3],"datatype":"FP32","data":[0.1,0.2,0.7]}'
    document = (
        b'{"model_name":7,"model_version":3,"parameters":[],"outputs":[{"name":null},' + odd + b"," + scores + b"]}"
    )
    async with foreign_server(lambda head, body: reply(document)) as url:
        with client(url) as cloud:
            found = await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5, wanted=["scores"])
            assert (list(found.outputs), found.version) == (["scores"], "3")
            with pytest.raises(CloudError):
                await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5, wanted=["odd"])


async def test_compressed_answers_are_not_asked_for_and_told_apart() -> None:
    """A proxy may compress where the client says nothing; one that does so all the same is named."""
    heads = []

    def answer(head: bytes, body: bytes) -> bytes:
        heads.append(head)
        return reply(gzip.compress(b"{}"), head="Content-Encoding: gzip\r\n")

    async with foreign_server(answer) as url:
        with client(url) as cloud, pytest.raises(CloudError, match=r"compressed \('gzip'\)"):
            await cloud.infer("small", {"x": UNSURE}, timeout_seconds=5)
    assert b"\r\nAccept-Encoding: identity\r\n" in heads[0]


async def test_retry_after_and_the_deadline_are_on_the_wire() -> None:
    """The tier's wish is in the error, as seconds or as a date; the request says how long its device waits."""
    bodies = []

    def answer(head: bytes, body: bytes) -> bytes:
        bodies.append(body)
        return reply(b'{"error": "busy"}', "503 Service Unavailable", head="Retry-After: 17\r\n")

    async with foreign_server(answer) as url:
        with client(url) as cloud, pytest.raises(CloudOverloadedError, match="503: busy") as caught:
            await cloud.infer("small", {"x": UNSURE}, timeout_seconds=1.5)
    assert caught.value.retry_after_seconds == 17
    document = msgspec.json.decode(bodies[0][: bodies[0].rindex(b"}") + 1])
    assert 1000 < document["parameters"]["edgekit_deadline_ms"] < 1490
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:10 GMT", 1445412480.0) == 10.0
    assert retry_after_seconds("soon", 0.0) is None
