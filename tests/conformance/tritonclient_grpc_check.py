"""Checks a running server with tritonclient over gRPC; runs in tritonclient's own environment.

Usage: tritonclient_grpc_check.py HOST:PORT [API_KEY]. The models are those of tritonclient_check.py. The script prints
one line per check and exits 1 if a check failed.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import traceback

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype
from tritonclient_check import EAR, KINDS, PNG, SCORES, TEXT, X


def make(arrays: dict[str, np.ndarray]) -> list[triton.InferInput]:
    inputs = []
    for name, value in arrays.items():
        inputs.append(triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
        inputs[-1].set_data_from_numpy(value)
    return inputs


def wanted(*names: str) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name) for name in names]


def refusal(call) -> str:
    try:
        call()
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    raise AssertionError("the request was not refused")


# --- the checks: each gets the client and the metadata to send


def health(client, headers):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small", headers=headers)
    assert client.is_model_ready("small", "1.0.0", headers=headers)
    assert not client.is_model_ready("small", "9.9.9", headers=headers)
    assert not client.is_model_ready("nothing", headers=headers)


def metadata(client, headers):
    server = client.get_server_metadata(headers=headers, as_json=True)
    assert server["name"] == "edgekit"
    model = client.get_model_metadata("small", headers=headers)
    assert (model.name, list(model.versions)) == ("small", ["1.0.0"])
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "FP32", [-1, 3])]
    kinds = client.get_model_metadata("kinds", "1.0.0", headers=headers)
    assert len(kinds.inputs) == len(kinds.outputs) == len(KINDS)


def outputs_all_and_some(client, headers):
    for outputs in (None, wanted("scores")):
        found = client.infer("small", make({"x": X}), outputs=outputs, headers=headers)
        np.testing.assert_allclose(found.as_numpy("scores"), SCORES, atol=1e-6)
        assert (found.as_numpy("tag") is not None) is (outputs is None)


def version_id_and_parameters(client, headers):
    found = client.infer(
        "small",
        make({"x": X}),
        model_version="1.0.0",
        request_id="seven",
        parameters={"mine": 1, "edgekit_deadline_ms": 5000},
        headers=headers,
    ).get_response()
    assert (found.id, found.model_version) == ("seven", "1.0.0")
    assert found.parameters["edgekit_version"].string_param == "1.0.0"


def kinds(client, headers):
    found = client.infer("kinds", make(KINDS), headers=headers)
    for name, value in KINDS.items():
        got = found.as_numpy(f"{name}_out")
        assert got.dtype == value.dtype, (name, got.dtype)
        np.testing.assert_array_equal(got, value, err_msg=name)


def text(client, headers):
    found = client.infer("text", make({"bytes": TEXT}), headers=headers)
    got = [item.decode() for item in found.as_numpy("bytes_out").ravel()]
    assert got == TEXT.ravel().tolist(), got


def photos(client, headers):
    """The client sends image bytes and receives labels; gRPC metadata has no field that announces them."""
    assert [t.name for t in client.get_model_metadata("photos", headers=headers).inputs] == ["x"]
    sent = make({"photo": np.array([PNG], dtype=object)})
    found = client.infer("photos", sent, outputs=wanted("labels"), headers=headers)
    assert found.as_numpy("labels")[0, 0] == b"green"


def streams(client, headers):
    """Two streams, begun, continued and ended with the client's own arguments; a refusal of an unknown one."""
    sums = {21: np.zeros((1, 4), np.float32), "text": np.zeros((1, 4), np.float32)}
    for step in range(4):
        for key, total in sums.items():
            piece = X[:1] * (step + 1)
            place = {"sequence_id": key, "sequence_start": step == 0, "sequence_end": step == 3}
            found = client.infer("ear", make({"x": piece}), headers=headers, **place)
            total[:] = total / 2 + piece @ EAR
            np.testing.assert_allclose(found.as_numpy("y"), total, atol=1e-4)
    message = refusal(lambda: client.infer("ear", make({"x": X[:1]}), sequence_id=21, headers=headers))
    assert "stream 21 of model ear is not open" in message


def no_rows(client, headers):
    found = client.infer("small", make({"x": np.zeros((0, 3), np.float32)}), headers=headers)
    assert {t.name: list(t.shape) for t in found.get_response().outputs} == {"scores": [0, 3], "tag": [0, 1]}


def many_at_once(client, headers):
    answers = queue.Queue()
    for i in range(32):
        client.async_infer(
            "small",
            make({"x": X * (i + 1)}),
            callback=lambda result, error: answers.put((result, error)),
            headers=headers,
        )
    for _ in range(32):
        result, error = answers.get(timeout=20)
        assert error is None, error
        np.testing.assert_array_equal(result.as_numpy("scores").argmax(-1), [0, 1])


def compression(client, headers):
    for kind in ("gzip", "deflate"):
        found = client.infer("small", make({"x": X}), compression_algorithm=kind, headers=headers)
        np.testing.assert_allclose(found.as_numpy("scores"), SCORES, atol=1e-6)


def refusals(client, headers):
    def ask(model, inputs, **more):
        return refusal(lambda: client.infer(model, inputs, headers=headers, **more))

    assert "NOT_FOUND" in ask("nothing", make({"x": X}))
    assert "NOT_FOUND" in ask("small", make({"x": X}), model_version="9.9.9")
    assert "INVALID_ARGUMENT" in ask("small", make({"x": X.T.copy()}))
    assert "expected float32" in ask("small", make({"x": X.astype(np.float64)}))
    assert "'y' is unknown" in ask("small", make({"y": X}))
    assert "'nope' is unknown" in ask("small", make({"x": X}), outputs=wanted("nope"))
    assert "RESOURCE_EXHAUSTED" in ask("small", make({"x": np.zeros((2**18, 3), np.float32)}))
    assert "UNIMPLEMENTED" in refusal(lambda: client.get_model_config("small", headers=headers))


def index_and_statistics(client, headers):
    index = client.get_model_repository_index(headers=headers).models
    assert {(m.name, m.version, m.state) for m in index} == {
        (n, "1.0.0", "READY") for n in ("small", "kinds", "text", "photos", "ear")
    }
    client.infer("small", make({"x": X}), headers=headers)
    (found,) = client.get_inference_statistics("small", headers=headers).model_stats
    assert found.inference_count > found.execution_count > 0
    assert found.inference_stats.success.ns > 0
    assert len(client.get_inference_statistics(headers=headers).model_stats) == 5


async def asynchronous(address: str, headers: dict[str, str]) -> None:
    async with aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        assert await client.is_model_ready("small", headers=headers)
        assert (await client.get_model_metadata("small", headers=headers)).name == "small"
        requests = [client.infer("small", make({"x": X}), outputs=wanted("scores"), headers=headers) for _ in range(64)]
        for found in await asyncio.gather(*requests):
            np.testing.assert_allclose(found.as_numpy("scores"), SCORES, atol=1e-6)
        gone = client.infer("nothing", make({"x": X}), headers=headers)
        (error,) = await asyncio.gather(gone, return_exceptions=True)
        assert "no model 'nothing'" in error.message()


CHECKS = (
    health,
    metadata,
    outputs_all_and_some,
    version_id_and_parameters,
    kinds,
    text,
    photos,
    streams,
    no_rows,
    many_at_once,
    compression,
    refusals,
    index_and_statistics,
)


def main() -> int:
    address, headers = sys.argv[1], {}
    if len(sys.argv) > 2:
        headers["authorization"] = f"Bearer {sys.argv[2]}"
    failed = 0
    client = triton.InferenceServerClient(address)
    runs = [(check.__name__, lambda check=check: check(client, headers)) for check in CHECKS]
    runs.append(("asynchronous", lambda: asyncio.run(asynchronous(address, headers))))
    for name, run in runs:
        try:
            run()
        except Exception:  # the script reports every check, whatever the client raises
            failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}")
        else:
            print(f"ok {name}")
    client.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
