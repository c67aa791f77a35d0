"""The device's cloud client with the kept answers of KServe's and MLServer's servers, over real connections.

`tests/conformance/test_kserve_mlserver.py` runs the servers themselves, and checks that these are still their answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_agents.diagnostics.cloud_check import Sent, check_cloud
from device_agents.inference.cloud.failures import CloudRefusedError
from device_agents.inference.cloud_client import CloudClient
from edgekit.serving.oip import codec as oip
from tests.simulators.small_models import SURE, onnx_bundle, softmax

PEERS = Path(__file__).parents[2] / "assets" / "peers"


class Replay:
    """A server that gives the kept answer to each kind of request.

    Attributes:
        asked: The kinds of requests that came.
        ids: Their ids.
    """

    def __init__(self, peer: str) -> None:
        self.kept = json.loads((PEERS / f"{peer}.json").read_text())
        self.asked: list[str] = []
        self.ids: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                writer.write(self._answer(head.split()[1], fields, body))
        writer.close()

    def _answer(self, path: str, fields: dict[str, str], body: bytes) -> bytes:
        kind = path
        if path.endswith("/infer"):
            length = oip.header_length(fields.get("inference-header-content-length"))
            document = msgspec.json.decode(body[:length])
            kind = ("json" if length is None else "binary") + ("" if document.get("id") else " without id")
            self.ids.append(document.get("id", ""))
        self.asked.append(kind)
        one = self.kept[kind]
        lines = [f"HTTP/1.1 {one['status']} -", *(f"{name}: {value}" for name, value in one["headers"].items())]
        data = one["body"].encode()
        return ("\r\n".join([*lines, f"content-length: {len(data)}", "", ""])).encode() + data


@contextlib.asynccontextmanager
async def replaying(peer: str) -> AsyncIterator[tuple[Replay, CloudClient]]:
    replay = Replay(peer)
    server = await asyncio.start_server(replay.serve, "127.0.0.1", 0)
    client = CloudClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", model="big")
    try:
        yield replay, client
    finally:
        client.close()
        server.close()


async def test_kserve_answers_because_requests_have_an_id() -> None:
    """Its models fail on requests without one. Null members and an output that nobody needs do no harm."""
    async with replaying("kserve") as (replay, client):
        for _ in range(3):
            found = await client.infer("small", {"x": SURE}, timeout_seconds=5, wanted=("scores", "tag"))
            np.testing.assert_allclose(found.outputs["scores"], softmax(SURE, 10.0), atol=1e-6)
            assert sorted(found.outputs) == ["scores", "tag"]
            assert (found.version, found.digest) == ("", "")
    assert replay.kept["binary without id"]["status"] == 500
    assert replay.asked == ["binary"] * 3
    assert len(set(replay.ids)) == 3


async def test_mlserver_is_asked_in_json_after_one_refused_binary_request() -> None:
    """The client remembers it."""
    async with replaying("mlserver") as (replay, client):
        for _ in range(3):
            found = await client.infer("small", {"x": SURE}, timeout_seconds=5)
            np.testing.assert_allclose(found.outputs["scores"], softmax(SURE, 10.0), atol=1e-6)
    assert replay.asked == ["binary", "json", "json", "json"]


async def test_bytes_without_a_form_in_json_are_a_refusal_of_the_server() -> None:
    """An image for a server without binary tensors: a failure of the cloud tier, and no error of the client."""
    image = np.array([b"\x89PNG\xff"], object)
    async with replaying("mlserver") as (replay, client):
        await client.infer("small", {"x": SURE}, timeout_seconds=5)
        with pytest.raises(CloudRefusedError, match="takes no binary tensors, and the inputs have no form in JSON"):
            await client.infer("small", {"photo": image}, timeout_seconds=5)
    assert replay.asked == ["binary", "json"]


@pytest.mark.parametrize("peer", ["kserve", "mlserver"])
async def test_the_check_accepts_empty_bodies_and_unstated_interfaces(tmp_path: Path, peer: str) -> None:
    """MLServer's health has no body, KServe's versions are null, and neither needs to state a model's tensors."""
    manifest = onnx_bundle(tmp_path, name="small")
    async with replaying(peer) as (_, client):
        says = await check_cloud(client, {"small": Sent("big", manifest)})
    assert says == "small is big of unknown version there (it does not state its interface)"
