"""Checks a running server with tritonclient over HTTP; runs in tritonclient's own environment.

Usage: tritonclient_check.py HOST:PORT [API_KEY]

The server must serve the models of `bundles` in test_tritonclient.py: small, kinds, text, photos and ear. Each call
gets a copy of the headers, because the client modifies them. Prints one line per check and exits 1 if a check failed.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import sys
import traceback

import numpy as np
import tritonclient.http as http
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

X = np.array([[9, 0, 0], [0, 5, 1]], np.float32)
SCORES = np.exp(X) / np.exp(X).sum(-1, keepdims=True)
KINDS = {
    "bool": np.array([[True, False], [False, True]]),
    **{
        name: np.array([[0, 1], [np.iinfo(name).min, np.iinfo(name).max]], name)
        for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
    },
    "float16": np.array([[0, 0.1], [-1.5, 60000]], np.float16),
    "float32": np.array([[0, 0.1], [-1e-38, 3e38]], np.float32),
    "float64": np.array([[0, 0.1], [-1e-300, 1e300]], np.float64),
}
# One green pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNg+M8AAAICAQB7CYF4AAAAAElFTkSuQmCC")
EAR = np.arange(12, dtype=np.float32).reshape(3, 4) / 8 - 0.5  # the weights of the model with state
TEXT = np.array([["", "a"], ["\u00e9", "dd"]], dtype=object)


def make(arrays: dict[str, np.ndarray], binary: bool = True) -> list[http.InferInput]:
    inputs = []
    for name, value in arrays.items():
        inputs.append(http.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
        inputs[-1].set_data_from_numpy(value, binary_data=binary)
    return inputs


def wanted(names: list[str], binary: bool | None) -> list[http.InferRequestedOutput] | None:
    return None if binary is None else [http.InferRequestedOutput(name, binary_data=binary) for name in names]


def refusal(call) -> str:
    try:
        call()
    except InferenceServerException as error:
        return str(error)
    raise AssertionError("the request was not refused")


# --- the checks: each gets the client and the headers to send


def health(client, headers):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small", headers={**headers})
    assert client.is_model_ready("small", "1.0.0", headers={**headers})
    assert not client.is_model_ready("small", "9.9.9", headers={**headers})
    assert not client.is_model_ready("nothing", headers={**headers})


def metadata(client, headers):
    server = client.get_server_metadata(headers={**headers})
    assert server["name"] == "edgekit"
    assert {"binary_tensor_data", "statistics"} <= set(server["extensions"])
    model = client.get_model_metadata("small", headers={**headers})
    assert (model["name"], model["versions"]) == ("small", ["1.0.0"])
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    kinds = client.get_model_metadata("kinds", "1.0.0", headers={**headers})
    assert len(kinds["inputs"]) == len(kinds["outputs"]) == len(KINDS)


def every_form(client, headers):
    for binary_in, binary_out in itertools.product((True, False), (True, False, None)):
        found = client.infer(
            "small", make({"x": X}, binary_in), outputs=wanted(["scores"], binary_out), headers={**headers}
        )
        np.testing.assert_allclose(found.as_numpy("scores"), SCORES, atol=1e-6)
        assert "id" not in found.get_response()
        assert (found.as_numpy("tag") is not None) is (binary_out is None)


def version_and_id(client, headers):
    found = client.infer("small", make({"x": X}), model_version="1.0.0", request_id="seven", headers={**headers})
    assert (found.get_response()["id"], found.get_response()["model_version"]) == ("seven", "1.0.0")
    assert found.get_response()["parameters"]["edgekit_version"] == "1.0.0"


def kinds(client, headers):
    for binary in (True, False):
        half = {"float16": KINDS["float16"]}  # has no JSON form
        others = {name: value for name, value in KINDS.items() if name not in half}
        inputs = make(others, binary) + make(half)
        outputs = wanted([f"{name}_out" for name in others], binary) + wanted(["float16_out"], True)
        found = client.infer("kinds", inputs, outputs=outputs, headers={**headers})
        for name, value in KINDS.items():
            got = found.as_numpy(f"{name}_out")
            assert got.dtype == value.dtype, (name, got.dtype)
            np.testing.assert_array_equal(got, value, err_msg=name)


def text(client, headers):
    for binary_in, binary_out in itertools.product((True, False), repeat=2):
        outputs = wanted(["bytes_out"], binary_out)
        found = client.infer("text", make({"bytes": TEXT}, binary_in), outputs=outputs, headers={**headers})
        got = [item.decode() if isinstance(item, bytes) else item for item in found.as_numpy("bytes_out").ravel()]
        assert got == TEXT.ravel().tolist(), got


def photos(client, headers):
    """The client accepts metadata with edgekit's extra fields, sends image bytes and receives labels."""
    model = client.get_model_metadata("photos", headers={**headers})
    assert [one["name"] for one in model["inputs"]] == ["x"]
    (photo,) = model["edgekit_bytes"]
    assert "labels" in {one["name"] for one in model["edgekit_answers"]}
    sent = make({photo["name"]: np.array([PNG], dtype=object)})
    found = client.infer("photos", sent, outputs=wanted(["labels"], True), headers={**headers})
    assert found.as_numpy("labels")[0, 0] == b"green"


def streams(client, headers):
    """Two streams, begun, continued and ended with the client's own arguments; a refusal of an unknown one."""
    sums = {21: np.zeros((1, 4), np.float32), "text": np.zeros((1, 4), np.float32)}
    for step in range(4):
        for key, total in sums.items():
            piece = X[:1] * (step + 1)
            place = {"sequence_id": key, "sequence_start": step == 0, "sequence_end": step == 3}
            found = client.infer("ear", make({"x": piece}), headers={**headers}, **place)
            total[:] = total / 2 + piece @ EAR
            np.testing.assert_allclose(found.as_numpy("y"), total, atol=1e-4)
    message = refusal(lambda: client.infer("ear", make({"x": X[:1]}), sequence_id=21, headers={**headers}))
    assert "stream 21 of model ear is not open" in message


def no_rows(client, headers):
    for binary in (True, False):
        found = client.infer("small", make({"x": np.zeros((0, 3), np.float32)}, binary), headers={**headers})
        shapes = {output["name"]: output["shape"] for output in found.get_response()["outputs"]}
        assert shapes == {"scores": [0, 3], "tag": [0, 1]}


def many_at_once(client, headers):
    requests = [client.async_infer("small", make({"x": X * (i + 1)}), headers={**headers}) for i in range(32)]
    for i, one in enumerate(requests):
        np.testing.assert_array_equal(one.get_result(timeout=20).as_numpy("scores").argmax(-1), [0, 1], err_msg=str(i))


def compressed_answers(client, headers):
    found = client.infer("small", make({"x": X}), response_compression_algorithm="gzip", headers={**headers})
    np.testing.assert_allclose(found.as_numpy("scores"), SCORES, atol=1e-6)


def refusals(client, headers):
    def ask(model, inputs, **more):
        return refusal(lambda: client.infer(model, inputs, headers={**headers}, **more))

    assert "[404]" in ask("nothing", make({"x": X}))
    assert "[404]" in ask("small", make({"x": X}), model_version="9.9.9")
    assert "expected [any, 3]" in ask("small", make({"x": X.T.copy()}))
    assert "expected float32" in ask("small", make({"x": X.astype(np.float64)}))
    assert "'y' is unknown" in ask("small", make({"y": X}))
    assert "'nope' is unknown" in ask("small", make({"x": X}), outputs=wanted(["nope"], True))
    assert "[415]" in ask("small", make({"x": X}), request_compression_algorithm="gzip")


def index_and_statistics(client, headers):
    index = client.get_model_repository_index(headers={**headers})
    assert {(m["name"], m["version"], m["state"]) for m in index} == {
        (name, "1.0.0", "READY") for name in ("small", "kinds", "text", "photos", "ear")
    }
    client.infer("small", make({"x": X}), headers={**headers})
    (found,) = client.get_inference_statistics("small", headers={**headers})["model_stats"]
    assert found["inference_count"] > found["execution_count"] > 0
    assert found["inference_stats"]["success"]["ns"] > 0
    assert len(client.get_inference_statistics(headers={**headers})["model_stats"]) == 5


async def asynchronous(address: str, headers: dict[str, str]) -> None:
    client = aio.InferenceServerClient(address)
    try:
        assert await client.is_server_ready()
        assert await client.is_model_ready("small", headers={**headers})
        assert (await client.get_model_metadata("small", headers={**headers}))["name"] == "small"
        for binary_in, binary_out in itertools.product((True, False), (True, False, None)):
            requests = [
                client.infer(
                    "small", make({"x": X}, binary_in), outputs=wanted(["scores"], binary_out), headers={**headers}
                )
                for _ in range(16)
            ]
            for found in await asyncio.gather(*requests):
                np.testing.assert_allclose(found.as_numpy("scores"), SCORES, atol=1e-6)
        (error,) = await asyncio.gather(
            client.infer("nothing", make({"x": X}), headers={**headers}), return_exceptions=True
        )
        assert isinstance(error, InferenceServerException), error
        assert "no model 'nothing'" in str(error)
    finally:
        await client.close()


CHECKS = (
    health,
    metadata,
    every_form,
    version_and_id,
    kinds,
    text,
    photos,
    streams,
    no_rows,
    many_at_once,
    compressed_answers,
    refusals,
    index_and_statistics,
)


def main() -> int:
    address, headers = sys.argv[1], {}
    if len(sys.argv) > 2:
        headers["Authorization"] = f"Bearer {sys.argv[2]}"
    failed = 0
    client = http.InferenceServerClient(address, concurrency=8)
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
