"""Checks of the agent's and the cloud tier's endpoints with tritonclient, which needs its own environment.

Run: python -m benchmarks.peers tritonclient && pytest -m soak tests/conformance
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import peers
from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import Manifest
from edgekit.serving.api.model_server import ModelServer
from edgekit.serving.cloud import CloudModels
from edgekit.serving.endpoints import Endpoints, open_endpoints
from tests.device_agents.inference.test_processing import with_processing
from tests.simulators.small_models import identity_bundle, onnx_bundle
from tests.simulators.streaming_models import streaming_bundle

SCRIPTS = {
    "http": Path(__file__).parent / "tritonclient_check.py",
    "grpc": Path(__file__).parent / "tritonclient_grpc_check.py",
}
KINDS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "float32", "float64")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        peers.python_of("tritonclient") is None,
        reason="no environment with tritonclient; make it: python -m benchmarks.peers tritonclient",
    ),
]


def bundles(folder: Path) -> dict[str, tuple[Manifest, Path]]:
    """Write the bundles that the scripts use: manifest and folder, by model."""
    manifests = {
        "small": onnx_bundle(folder / "small", batch=None),
        "kinds": identity_bundle(folder / "kinds", name="kinds", dtypes=(*KINDS, *FLOATS)),
        "text": identity_bundle(folder / "text", name="text", dtypes=("bytes",)),
        "ear": streaming_bundle(folder / "ear", name="ear"),
        "photos": with_processing(folder / "photos", name="photos", batch=None),
    }
    return {name: (manifest, folder / name) for name, manifest in manifests.items()}


async def check(server: ModelServer, key: str = "") -> None:
    """Serve over HTTP and gRPC, and run both scripts against the endpoints."""
    addresses = Endpoints(url="127.0.0.1:0", grpc="127.0.0.1:0")
    async with open_endpoints(server, addresses, max_request_bytes=2**20, api_key=key) as endpoints:
        for kind, address in (("http", endpoints.url.removeprefix("http://")), ("grpc", endpoints.grpc)):
            command = [str(peers.python_of("tritonclient")), str(SCRIPTS[kind]), address, *([key] if key else [])]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            try:
                output, _ = await asyncio.wait_for(process.communicate(), 480)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert process.returncode == 0, output.decode()
            assert output.decode().count("ok ") == 14, output.decode()


async def test_the_agents_endpoint_is_what_tritonclient_expects(tmp_path: Path) -> None:
    """tritonclient works with the agent over HTTP and gRPC, sync and async, binary and JSON."""
    async with InferenceService() as service:
        for name, (manifest, folder) in bundles(tmp_path).items():
            await service.activate(name, manifest, folder)
            await service.self_test(name)
        await check(service)


async def test_the_cloud_tier_is_what_tritonclient_expects(tmp_path: Path) -> None:
    """tritonclient works with the cloud tier in the same way, with an API key."""
    models_by_name = bundles(tmp_path)
    models = await CloudModels.open(list(models_by_name), models_by_name.__getitem__, threads=1)
    try:
        await check(models, "a-key-of-the-test")
    finally:
        await models.close()
