"""A third-party client against the agent's endpoint and the cloud tier; needs its own environment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import peers
from device_agents.inference import InferenceService
from edgekit.cloud import CloudModels
from edgekit.manifest import Manifest
from edgekit.serving.app import App, ModelServer
from edgekit.serving.server import serve
from tests.simulators.small_models import identity_bundle, onnx_bundle

SCRIPT = Path(__file__).parent / "tritonclient_check.py"
KINDS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "float32", "float64")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        peers.python_of("tritonclient") is None,
        reason="tritonclient has no environment; make it: python -m benchmarks.peers tritonclient",
    ),
]


def bundles(folder: Path) -> dict[str, tuple[Manifest, Path]]:
    made = {
        "small": onnx_bundle(folder / "small", batch=None),
        "kinds": identity_bundle(folder / "kinds", name="kinds", dtypes=(*KINDS, *FLOATS)),
        "text": identity_bundle(folder / "text", name="text", dtypes=("bytes",)),
    }
    return {name: (manifest, folder / name) for name, manifest in made.items()}


async def check(server: ModelServer, key: str = "") -> None:
    async with serve(App(server, max_request_bytes=2**20, api_key=key), http="127.0.0.1:0") as bound:
        address = bound.url.removeprefix("http://")
        command = [str(peers.python_of("tritonclient")), str(SCRIPT), address, *([key] if key else [])]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), 120)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, said.decode()
    assert said.decode().count("ok ") == 12, said.decode()


async def test_the_agents_endpoint_is_what_tritonclient_expects(tmp_path: Path) -> None:
    """Sync and async, binary and JSON, every datatype, versions, ids, errors, index and statistics."""
    async with InferenceService() as service:
        for name, (manifest, folder) in bundles(tmp_path).items():
            await service.activate(name, manifest, folder)
            await service.self_test(name)
        await check(service)


async def test_the_cloud_tier_is_what_tritonclient_expects(tmp_path: Path) -> None:
    """The same checks, with an API key."""
    made = bundles(tmp_path)
    models = await CloudModels.open(list(made), made.__getitem__, threads=1)
    try:
        await check(models, "a-key-of-the-test")
    finally:
        await models.close()
