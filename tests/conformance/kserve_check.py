"""Checks of an endpoint with KServe's own clients, in KServe's environment: kserve_check.py URL GRPC [KEY]."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig

X = np.array([[9, 0, 0], [0, 1, 2]], np.float32)


def request(*, binary: bool, request_id: str | None = None) -> InferRequest:
    """A request for the model ``small`` with two rows."""
    x = InferInput("x", list(X.shape), "FP32")
    x.set_data_from_numpy(X, binary_data=binary)
    return InferRequest("small", [x], request_id)


def check_outputs(name: str, response: object) -> None:
    """Print ``ok NAME`` where the rows are probabilities of the right class."""
    outputs = {one.name: one.as_numpy() for one in response.outputs}
    scores = outputs["scores"].reshape(2, 3)
    assert scores.argmax(axis=1).tolist() == [0, 2], scores
    assert np.allclose(scores.sum(axis=1), 1), scores
    print("ok", name)


async def rest(url: str, headers: dict[str, str]) -> None:
    """Health, readiness, inference in JSON and binary, with and without an id."""
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=30)) as client:
        assert await client.is_server_live(url, headers=dict(headers)) is True
        assert await client.is_server_ready(url, headers=dict(headers)) is True
        assert await client.is_model_ready(url, "small", headers=dict(headers)) is True
        assert await client.is_model_ready(url, "none", headers=dict(headers)) is False
        print("ok rest health")
        for binary in (False, True):
            for request_id in (None, "seven"):
                sent = request(binary=binary, request_id=request_id)
                found = await client.infer(url, sent, "small", headers=dict(headers))
                assert request_id is None or found.id == request_id, found.id
                check_outputs(f"rest binary={binary} id={request_id}", found)


async def grpc(address: str, headers: dict[str, str]) -> None:
    """The same over gRPC."""
    metadata = tuple((key.lower(), value) for key, value in headers.items())
    async with InferenceGRPCClient(address, retries=2, timeout=30) as client:
        assert await client.is_server_live(headers=metadata) is True
        assert await client.is_server_ready(headers=metadata) is True
        assert await client.is_model_ready("small", headers=metadata) is True
        print("ok grpc health")
        check_outputs("grpc raw", await client.infer(request(binary=True), headers=metadata))
        check_outputs("grpc typed", await client.infer(request(binary=False, request_id="seven"), headers=metadata))


if __name__ == "__main__":
    KEY = {"Authorization": f"Bearer {sys.argv[3]}"} if len(sys.argv) > 3 else {}
    asyncio.run(rest(sys.argv[1], KEY))
    asyncio.run(grpc(sys.argv[2], KEY))
