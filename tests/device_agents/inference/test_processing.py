"""Bytes in, labels out: the same answers in process, over HTTP and from the cloud tier."""

from __future__ import annotations

import asyncio
import http.client
import io
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from device_agents.inference.service import InferenceService
from edgekit import decoding
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, file_entry, parse_manifest
from edgekit.errors import DataError, ManifestError, MissingExtraError
from edgekit.preprocess import Processing
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.session import OverloadedError
from tests.simulators.cloud import MemoryCloud
from tests.simulators.small_models import SURE, onnx_bundle, softmax

PROCESSING = """
[[before]]
raw = "photo"
steps = [
  {do = "decode-image", max_pixels = 100000},
  {do = "resize", height = 1, width = 1, method = "pillow-box"},
  {do = "flatten"},
  {do = "scale", by = 0.0392156862745098},
]
[[after]]
do = "top-k"
k = 2
of = "scores"
labels = ["red", "green", "blue"]
"""


def with_processing(folder: Path, text: str = PROCESSING, **choices: object) -> Manifest:
    """A small bundle in `folder` whose manifest carries the steps of `text`."""
    manifest = msgspec.structs.replace(
        onnx_bundle(folder, **choices), processing=msgspec.toml.decode(text, type=Processing)
    )
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return parse_manifest(manifest.canonical_bytes())


def photo(colour: tuple[int, int, int], side: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def raw(*items: bytes) -> np.ndarray:
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


GREEN = np.array([[0.0, 10.0, 0.0]], np.float32)  # what a green photo becomes


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[InferenceService]:
    manifest = with_processing(tmp_path)
    async with InferenceService() as made:
        await made.activate("m", manifest, tmp_path)
        yield made


async def test_bytes_are_answered_with_labels(service: InferenceService) -> None:
    """And tensors with tensors, unless the request says otherwise; both agree."""
    found = await service.infer("m", {"photo": raw(photo((0, 255, 0)), photo((255, 0, 0)))})
    assert found.outputs["labels"][:, 0].tolist() == [b"green", b"red"]
    assert found.parameters["edgekit_route"] == "local"
    by_tensor = await service.infer("m", {"x": GREEN}, postprocess=True)
    np.testing.assert_array_equal(by_tensor.outputs["scores"][0], found.outputs["scores"][0])
    plain = await service.infer("m", {"x": GREEN})
    np.testing.assert_allclose(plain.outputs["scores"], softmax(GREEN), atol=1e-6)
    undone = await service.infer("m", {"photo": raw(photo((0, 255, 0)))}, postprocess=False)
    np.testing.assert_array_equal(undone.outputs["scores"], plain.outputs["scores"])
    counters = service.counters()["m"]
    assert (counters["requests"], counters["errors"]) == (4, 0)


def ask(port: int, body: bytes, headers: dict[str, str]) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v2/models/m/infer", body, headers)
    answer = connection.getresponse()
    document = msgspec.json.decode(answer.read())
    connection.close()
    return answer.status, document


async def test_bytes_go_over_http(service: InferenceService) -> None:
    """A photo as a BYTES tensor; what is no photo, a name that is not there and a wrong parameter give 400."""

    def request(data: bytes, **parameters: object) -> tuple[bytes, dict[str, str]]:
        encoded = oip.encode_request({"photo": raw(data)}, parameters=parameters)
        return encoded.body.replace(b'"binary_data_output":true', b'"binary_data_output":null', 0), encoded.headers

    app = App(service, max_request_bytes=2**20)
    async with serve(app, http="127.0.0.1:0", socket=None) as bound:
        port = int(bound.url.rsplit(":", 1)[1])
        encoded = oip.encode_request({"photo": raw(photo((0, 0, 255)))}, binary=True)
        text = msgspec.json.decode(encoded.body[: encoded.header_length])
        text["parameters"] = {}
        head = msgspec.json.encode(text)
        body = head + encoded.body[encoded.header_length :]
        headers = {oip.HEADER: str(len(head))}
        status, document = await asyncio.to_thread(ask, port, body, headers)
        assert status == 200, document
        outputs = {one["name"]: one for one in document["outputs"]}
        assert outputs["labels"] == {"name": "labels", "datatype": "BYTES", "shape": [1, 2], "data": ["blue", "red"]}
        status, document = await asyncio.to_thread(ask, port, *request(b"GIF89a not"))
        assert (status, document["error"][:39]) == (400, "photo[0]: the image cannot be decoded: ")
        status, document = await asyncio.to_thread(ask, port, *request(photo((0, 0, 0), side=400)))
        assert (status, document["error"]) == (400, "photo[0]: the image is 400 by 400, the limit is 100000 pixels")
        status, document = await asyncio.to_thread(ask, port, *request(b"x", edgekit_postprocess="yes"))
        assert (status, document["error"]) == (400, "edgekit_postprocess is 'yes', expected true or false")


async def test_outputs_are_asked_for_by_what_is_answered(service: InferenceService) -> None:
    """Names of the steps' results with bytes, of the model's outputs without."""
    request = oip.InferRequest({"photo": raw(photo((0, 255, 0)))}, outputs={"labels": False})
    assert "labels" in (await service.answer("m", None, request)).outputs
    with pytest.raises(DataError, match="'absent' is unknown, expected scores"):
        await service.answer("m", None, oip.InferRequest({"x": GREEN}, outputs={"absent": False}))
    with pytest.raises(DataError, match="'labels' is unknown, expected scores"):
        await service.answer("m", None, oip.InferRequest({"x": GREEN}, outputs={"labels": False}))


async def test_the_cloud_is_asked_with_tensors(tmp_path: Path) -> None:
    """Bytes are decoded here, and what the cloud answered is worked on here: routes make no difference to clients."""
    answers = {"scores": np.array([[0.0, 0.1, 0.9]], np.float32), "tag": np.zeros((1, 1), np.float32)}
    cloud = MemoryCloud(answers)
    manifest = with_processing(tmp_path)
    async with InferenceService(cloud=cloud) as made:
        await made.activate("m", manifest, tmp_path)
        found = await made.infer("m", {"photo": raw(photo((0, 255, 0)))}, route="cloud-only")
        assert found.outputs["labels"].tolist() == [[b"blue", b"green"]]


async def test_the_cloud_tier_takes_bytes_too(tmp_path: Path) -> None:
    manifest = with_processing(tmp_path, batch=None)
    models = await CloudModels.open(["m"], lambda name: (manifest, tmp_path), threads=1)
    found = await models.answer("m", None, oip.InferRequest({"photo": raw(photo((255, 0, 0)))}))
    assert found.outputs["labels"].tolist() == [[b"red", b"green"]]
    await models.close()


async def test_bytes_that_came_before_a_switch_are_decoded_for_the_next_bundle(tmp_path: Path) -> None:
    """A large photo is being decoded while another version takes over: the answer is the new one's, wholly."""
    first = with_processing(tmp_path / "1", PROCESSING.replace("max_pixels = 100000", "max_pixels = 20000000"))
    other = PROCESSING.replace("100000", "20000000").replace('"red", "green", "blue"', '"rot", "gruen", "blau"')
    second = with_processing(tmp_path / "2", other, version="2.0.0")
    async with InferenceService() as made:
        await made.activate("m", first, tmp_path / "1")
        asked = asyncio.create_task(made.infer("m", {"photo": raw(photo((0, 255, 0), side=4000))}))
        await asyncio.sleep(0)
        await made.activate("m", second, tmp_path / "2")
        found = await asked
        expected = {"1.0.0": b"green", "2.0.0": b"gruen"}
        assert found.outputs["labels"][0, 0] == expected[found.parameters["edgekit_version"]]


async def test_no_more_is_decoded_at_a_time_than_the_queue_takes(tmp_path: Path) -> None:
    manifest = with_processing(tmp_path, PROCESSING.replace("100000", "20000000"))
    async with InferenceService(options=ModelOptions(queue_limit=2)) as made:
        await made.activate("m", manifest, tmp_path)
        large = {"photo": raw(photo((0, 255, 0), side=2000))}
        found = await asyncio.gather(*(made.infer("m", large) for _ in range(6)), return_exceptions=True)
        assert sorted({type(one).__name__ for one in found}) == ["InferResponse", "OverloadedError"]
        assert sum(isinstance(one, OverloadedError) for one in found) == 4


async def test_a_bundle_whose_bytes_cannot_be_decoded_here_is_not_activated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Pillow the switch fails with the line that mends it, and the model before it keeps answering."""
    manifest = with_processing(tmp_path / "2")
    old = onnx_bundle(tmp_path / "1")

    def missing() -> None:
        raise MissingExtraError("PIL", "images")

    monkeypatch.setattr(decoding, "require_decoder", missing)
    async with InferenceService() as made:
        await made.activate("m", old, tmp_path / "1")
        with pytest.raises(MissingExtraError) as caught:
            await made.activate("m", manifest, tmp_path / "2")
        assert "edgekit[images]" in caught.value.advice
        assert (await made.infer("m", {"x": SURE})).parameters["edgekit_model"] == old.digest


def test_a_manifest_without_processing_has_the_bytes_it_always_had(tmp_path: Path) -> None:
    """Not even a null: digests of bundles that were signed before stay what they were."""
    assert b"processing" not in onnx_bundle(tmp_path).canonical_bytes()


def test_processing_may_only_read_files_of_its_role(tmp_path: Path) -> None:
    """A vocabulary that is not in the bundle, or is another kind of file, and steps that do not fit: all are named."""
    text = '[[before]]\nsteps = [{do = "word-pieces", vocabulary = "words.txt"}]'
    manifest = msgspec.structs.replace(onnx_bundle(tmp_path), processing=msgspec.toml.decode(text, type=Processing))
    entry = file_entry("words.txt", "report", b"x")
    for files in (manifest.files, (*manifest.files, entry)):
        changed = msgspec.structs.replace(manifest, files=files)
        with pytest.raises(ManifestError, match=r"end in int64 \[128\].*reads 'words.txt', but no file with role"):
            parse_manifest(changed.canonical_bytes())


def test_steps_that_this_edgekit_does_not_know_are_refused(tmp_path: Path) -> None:
    data = with_processing(tmp_path).canonical_bytes().replace(b'"do":"flatten"', b'"do":"run-python"')
    with pytest.raises(ManifestError, match="run-python"):
        parse_manifest(data)
