"""The device with KServe's and MLServer's servers as its cloud tier, and their clients with edgekit's cloud tier.

Run: python -m benchmarks.peers kserve mlserver && pytest -m soak tests/conformance

What the servers answered is kept in ``tests/assets/peers`` for `tests/device_agents/inference/test_other_servers.py`;
`EDGEKIT_RECORD=1` writes it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks import peers
from device_agents.diagnostics.cloud_check import Sent, check_cloud
from device_agents.inference.cloud.http_client import HttpClient, HttpReply
from device_agents.inference.cloud_client import CloudClient
from edgekit.errors import CloudError
from edgekit.serving.cloud import CloudModels
from edgekit.serving.endpoints import Endpoints, open_endpoints
from edgekit.serving.oip import codec as oip
from tests.simulators.ports import free_port
from tests.simulators.small_models import SURE, UNSURE, onnx_bundle, softmax

HERE = Path(__file__).parent
ASSETS = HERE.parent / "assets" / "peers"
VOLATILE = ("date", "content-length", "ce-id", "ce-requestid")
KEY = "a-key-of-the-test"


def needs(peer: str) -> pytest.MarkDecorator:
    missing = peers.python_of(peer) is None
    reason = f"no environment with {peer}; make it: python -m benchmarks.peers {peer}"
    return pytest.mark.skipif(missing, reason=reason)


pytestmark = pytest.mark.soak
BOTH = [pytest.param(name, marks=needs(name)) for name in ("kserve", "mlserver")]


@contextlib.asynccontextmanager
async def running(peer: str) -> AsyncIterator[str]:
    """The peer's own server with the model ``big``; its URL."""
    port = free_port()
    command = [str(peers.python_of(peer)), f"{peer}_server.py", str(port), str(free_port())]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=HERE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        client = CloudClient(url)
        for _ in range(600):
            with contextlib.suppress(CloudError):
                if (await client.get("/v2/models/big/ready", timeout_seconds=1)).status == 200:
                    break
            await asyncio.sleep(0.1)
        client.close()
        yield url
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("peer", BOTH)
async def test_another_makers_server_is_a_cloud_tier(peer: str, tmp_path: Path) -> None:
    """Answers, the check of the agent, and one refused binary request where JSON is needed."""
    manifest = onnx_bundle(tmp_path, name="small")
    async with running(peer) as url:
        client = CloudClient(url, model="big")
        try:
            for wanted in (("scores", "tag"), None):
                for rows in (SURE, UNSURE, np.repeat(SURE, 7, axis=0)):
                    found = await client.infer("small", {"x": rows}, timeout_seconds=10, wanted=wanted)
                    np.testing.assert_allclose(found.outputs["scores"], softmax(rows, 10.0), atol=1e-6)
                    assert (found.version, found.digest) == ("", "")
            for kind in ("live", "ready"):
                assert (await client.get(f"/v2/health/{kind}", timeout_seconds=5)).status == 200
            says = await check_cloud(client, {"small": Sent("big", manifest)})
            assert says == "small is big of unknown version there (it does not state its interface)"
        finally:
            client.close()


def plain(reply: HttpReply) -> dict[str, object]:
    headers = {name: value for name, value in reply.headers.items() if name not in VOLATILE}
    return {"status": reply.status, "headers": headers, "body": reply.body.decode()}


@pytest.mark.parametrize("peer", BOTH)
async def test_the_kept_answers_are_still_theirs(peer: str) -> None:
    """Of the pinned version of each peer."""
    async with running(peer) as url:
        http = HttpClient(url)
        found = {}
        for binary in (True, False):
            for request_id in ("1", ""):
                sent = oip.encode_request({"x": SURE}, binary=binary, request_id=request_id)
                reply = await http.request(
                    "POST", "/v2/models/big/infer", headers=sent.headers, body=sent.body, timeout_seconds=10
                )
                found[f"{'binary' if binary else 'json'}{'' if request_id else ' without id'}"] = plain(reply)
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/big", "/v2/models/none"):
            found[path] = plain(await http.request("GET", path, headers={}, timeout_seconds=10))
        http.close()
    file = ASSETS / f"{peer}.json"
    if os.environ.get("EDGEKIT_RECORD"):
        file.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    kept = json.loads(file.read_text())
    assert kept.keys() == found.keys()
    for name, one in kept.items():
        if name != "json without id":  # the server makes an id of its own
            assert found[name] == one, name


@contextlib.asynccontextmanager
async def tier(folder: Path) -> AsyncIterator[Endpoints]:
    bundle = onnx_bundle(folder, batch=None)
    models = await CloudModels.open(["small"], lambda _: (bundle, folder), threads=1)
    addresses = Endpoints(url="127.0.0.1:0", grpc="127.0.0.1:0")
    async with open_endpoints(models, addresses, max_request_bytes=2**20, api_key=KEY) as endpoints:
        yield endpoints
    await models.close()


async def run(*command: object) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode == 0, output.decode()
    return output.decode()


@needs("kserve")
async def test_kserves_clients_work_with_the_cloud_tier(tmp_path: Path) -> None:
    """Over HTTP and gRPC, in JSON and binary, with and without an id."""
    async with tier(tmp_path) as endpoints:
        python = peers.python_of("kserve")
        output = await run(python, HERE / "kserve_check.py", endpoints.url, endpoints.grpc, KEY)
    assert output.count("ok ") == 8, output


@needs("mlserver")
@pytest.mark.parametrize("binary", [False, True])
async def test_mlservers_batch_client_works_with_the_cloud_tier(tmp_path: Path, binary: bool) -> None:
    """Every request of a file is answered, with its id."""
    asked, answered = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [[9, 0, number] for number in range(5)]
    requests = [
        {"id": str(number), "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": row}]}
        for number, row in enumerate(rows)
    ]
    asked.write_text("".join(json.dumps(one) + "\n" for one in requests))
    async with tier(tmp_path / "bundle") as endpoints:
        python = peers.python_of("mlserver")
        assert python is not None
        where = ["-u", endpoints.url.removeprefix("http://"), "-H", f"Authorization:Bearer {KEY}"]
        files = ["-i", asked, "-o", answered, *(["-b"] if binary else [])]
        await run(python.parent / "mlserver", "infer", "-m", "small", "-s", "2", "-w", "1", *where, *files)
    found = {one["id"]: one for one in map(json.loads, answered.read_text().splitlines())}
    assert sorted(found) == ["0", "1", "2", "3", "4"]
    for number, row in enumerate(rows):
        scores = next(one["data"] for one in found[str(number)]["outputs"] if one["name"] == "scores")
        np.testing.assert_allclose(scores, softmax(np.array([row], np.float32), 1.0)[0], atol=1e-5)
