"""A request body that is only an image, a sound or a text, as curl sends a file."""

from __future__ import annotations

import asyncio
import http.client
import io
import shutil
import struct
import subprocess
import wave
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_PROCESSING, Manifest, file_entry, parse_manifest
from edgekit.preprocess import Processing
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.models.options import ModelSettings
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.memory_usage import MemoryFootprints
from tests.device_agents.inference.test_processing import PROCESSING, photo, with_processing
from tests.simulators.cloud import MemoryCloud
from tests.simulators.small_models import onnx_bundle

MIB = 2**20
PNG = {"Content-Type": "image/png"}
SOUND = '[[before]]\nsteps = [{do = "decode-wav", sample_rate = 8000}, {do = "fit-length", samples = 3}]\n'
WORDS = """
[[before]]
steps = [{do = "word-pieces", vocabulary = "words.txt", length = 3}, {do = "cast", dtype = "float32"}]
[[after]]
do = "softmax"
of = "scores"
"""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[InferenceService]:
    """``m`` takes photos, ``sound`` sounds, ``words`` texts, ``plain`` tensors alone."""
    async with InferenceService() as made:
        for name, text in (("m", PROCESSING), ("sound", SOUND)):
            await made.activate(name, with_processing(tmp_path / name, text, batch=None), tmp_path / name)
        await made.activate("words", with_words(tmp_path / "words"), tmp_path / "words")
        await made.activate("plain", onnx_bundle(tmp_path / "plain"), tmp_path / "plain")
        yield made


@pytest.fixture
async def port(service: InferenceService) -> AsyncIterator[int]:
    async with serve(App(service, max_request_bytes=2**20), http="127.0.0.1:0", socket=None) as bound:
        yield int(bound.url.rsplit(":", 1)[1])


def with_words(folder: Path) -> Manifest:
    manifest = onnx_bundle(folder)
    words = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\ngood\n"
    (folder / "words.txt").write_bytes(words)
    files = (*manifest.files, file_entry("words.txt", ROLE_PROCESSING, words))
    processing = msgspec.toml.decode(WORDS, type=Processing)
    manifest = msgspec.structs.replace(manifest, files=files, processing=processing)
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return parse_manifest(manifest.canonical_bytes())


def ask(port: int, model: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", f"/v2/models/{model}/infer", body, headers)
    answer = connection.getresponse()
    document = msgspec.json.decode(answer.read())
    connection.close()
    return answer.status, document, dict(answer.getheaders())


async def asked(port: int, model: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict, dict[str, str]]:
    return await asyncio.to_thread(ask, port, model, body, headers)


def values(document: dict) -> dict[str, list]:
    return {one["name"]: one["data"] for one in document["outputs"]}


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 3, "NONE", ""))
        file.writeframes(np.array([0, 32767, 0], "<i2").tobytes())
    return buffer.getvalue()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_curl_sends_a_photo_and_gets_labels(port: int, tmp_path: Path) -> None:
    """And JSON with the type that curl gives everything it posts is JSON, as ever."""
    (tmp_path / "cat.png").write_bytes(photo((0, 255, 0)))
    url = f"http://127.0.0.1:{port}/v2/models/m/infer"

    def curl(*words: str) -> dict:
        done = subprocess.run(["curl", "-sS", *words, url], capture_output=True, cwd=tmp_path, timeout=20, check=True)
        return msgspec.json.decode(done.stdout)

    found = await asyncio.to_thread(curl, "--data-binary", "@cat.png", "-H", "Content-Type: image/png")
    assert values(found)["labels"] == ["green", "red"]
    tensor = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0, 9, 0]}]}'
    assert values(await asyncio.to_thread(curl, "-d", tensor))["scores"][1] > 0.99


async def test_a_sound_and_a_text_are_taken_too(port: int) -> None:
    """By their types, with or without parameters."""
    for kind in ("audio/wav", "audio/x-wav", "Audio/Wave; codecs=1"):
        status, found, _ = await asked(port, "sound", sound(), {"Content-Type": kind})
        assert (status, np.argmax(values(found)["scores"])) == (200, 1), found
    for kind in ("text/plain", 'text/plain; charset="UTF-8"'):
        status, found, _ = await asked(port, "words", b"good", {"Content-Type": kind})
        assert (status, np.argmax(values(found)["scores"])) == (200, 1), found  # [CLS] good [SEP] are 2, 4, 3


async def test_headers_are_the_parameters(port: int) -> None:
    """Route, deadline and whether the answer is worked on; what is wrong or unknown is refused as in JSON."""
    sent = {**PNG, "Edgekit-Route": "local-only", "Edgekit-Deadline-Ms": "5000", "Edgekit-Postprocess": "false"}
    status, found, _ = await asked(port, "m", photo((0, 255, 0)), sent)
    assert (status, set(values(found))) == (200, {"scores", "tag"})
    for header, value, said in (
        ("Edgekit-Route", "home", "edgekit_route is 'home', expected one of"),
        ("Edgekit-Route", "cloud-only", "no cloud tier is configured"),
        ("Edgekit-Deadline-Ms", "soon", "edgekit_deadline_ms is 'soon', expected a number"),
        ("Edgekit-Deadline-Ms", "-1", "edgekit_deadline_ms is -1, expected a number above 0"),
        ("Edgekit-Deadline-Ms", "1e999", "edgekit_deadline_ms is '1e999'"),
        ("Edgekit-Rout", "auto", "parameter 'edgekit_rout' is unknown"),
    ):
        status, found, _ = await asked(port, "m", photo((0, 255, 0)), {**PNG, header: value})
        assert status == (503 if value == "cloud-only" else 400)
        assert said in found["error"]


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        (
            "m",
            "image/webp",
            "accepts a body of image/jpeg or image/png or application/json, this is image/webp",
        ),
        ("m", "image/png, image/jpeg", "this is image/png, image/jpeg"),
        ("m", "audio/wav", "accepts a body of image/jpeg or image/png or application/json, this is audio/wav"),
        ("m", "text/plain", "this is text/plain"),
        ("plain", "image/png", "model 'plain' accepts a body of application/json, this is image/png"),
    ],
)
async def test_a_type_that_the_model_does_not_take_is_415(port: int, model: str, kind: str, said: str) -> None:
    """The error and the header Accept name those that it does."""
    status, found, headers = await asked(port, model, photo((0, 0, 0)), {"Content-Type": kind})
    assert status == 415
    assert said in found["error"]
    assert headers["Accept"].endswith("application/json")


async def test_json_that_is_called_text_is_json(port: int) -> None:
    """For a model that takes no text: HTTP clients in JavaScript send every string as text/plain."""
    body = b' {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0, 9, 0]}]}'
    for model in ("m", "plain"):
        status, found, _ = await asked(port, model, body, {"Content-Type": "text/plain;charset=UTF-8"})
        assert (status, np.argmax(values(found)["scores"])) == (200, 1)


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 9,000 by 9,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 9_000, 9_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("model", "kind", "body", "said"),
    [
        ("m", "image/png", b"", "the 0 bytes are no JPEG or PNG"),
        ("m", "image/jpeg", b"GIF89a", "no JPEG or PNG"),
        ("m", "image/png", photo((1, 2, 3))[:60], "damaged"),
        ("m", "image/png", bomb(), "the image is 9000 by 9000, the limit is 100000 pixels"),
        ("sound", "audio/wav", b"RIFF", "not a WAVE sound"),
        ("words", "text/plain", b"\xff\xfe", "not UTF-8"),
        ("words", "text/plain", b"good " * 20_000, "the limit is 65536"),
        ("words", "text/plain; charset=latin-1", b"good", "the text is in 'latin-1', expected utf-8"),
    ],
    ids=["empty", "no image", "truncated", "bomb", "no sound", "no text", "long text", "charset"],
)
async def test_hostile_bodies_are_400(port: int, model: str, kind: str, body: bytes, said: str) -> None:
    """With the reason; and the next request is answered."""
    status, found, _ = await asked(port, model, body, {"Content-Type": kind})
    assert status == 400, found
    assert said in found["error"]
    assert (await asked(port, "m", photo((0, 255, 0)), PNG))[0] == 200


async def test_a_body_over_the_limit_is_413(port: int) -> None:
    """The limit is that of every request body."""
    assert (await asked(port, "m", bytes(2**20 + 1), PNG))[0] == 413


async def test_the_raw_form_stays_what_it_is(port: int) -> None:
    """A length of JSON says how the body is to be read, whatever its type says."""
    tensor = np.array([[0, 9, 0]], np.float32).tobytes()
    status, _, _ = await asyncio.to_thread(_status, port, tensor, {**PNG, oip.HEADER: "0"})
    assert status == 200


def _status(port: int, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v2/models/plain/infer", body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers["Content-Type"]
    connection.close()
    return found


async def test_the_cloud_gets_what_the_photo_was_made_into(tmp_path: Path) -> None:
    """And where the device has no bundle, so that nobody knows what a photo becomes, it takes tensors alone."""
    answers = {"scores": np.array([[0.0, 0.1, 0.9]], np.float32), "tag": np.zeros((1, 1), np.float32)}
    cloud = MemoryCloud(answers)
    async with InferenceService(cloud=cloud, models={"unknown": ModelSettings()}) as made:
        await made.activate("m", with_processing(tmp_path), tmp_path)
        async with serve(App(made, max_request_bytes=2**20), http="127.0.0.1:0", socket=None) as bound:
            port = int(bound.url.rsplit(":", 1)[1])
            status, found, _ = await asked(port, "m", photo((0, 255, 0)), {**PNG, "Edgekit-Route": "cloud-only"})
            assert (status, values(found)["labels"]) == (200, ["blue", "green"])
            assert found["parameters"]["edgekit_route"] == "cloud"
            status, found, _ = await asked(port, "unknown", photo((0, 255, 0)), PNG)
            assert (status, found["error"][:56]) == (415, "model 'unknown' accepts a body of application/json, this")


async def test_the_cloud_tier_takes_photos(tmp_path: Path) -> None:
    """The same server, the same answer."""
    manifest = with_processing(tmp_path, batch=None)
    models = await CloudModels.open(["m"], lambda name: (manifest, tmp_path), threads=1)
    async with serve(App(models, max_request_bytes=2**20), http="127.0.0.1:0", socket=None) as bound:
        status, found, _ = await asked(int(bound.url.rsplit(":", 1)[1]), "m", photo((255, 0, 0)), PNG)
    assert (status, values(found)["labels"]) == (200, ["red", "green"])
    await models.close()


async def test_a_jpeg_is_taken(port: int) -> None:
    """A photo as cameras write it."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (0, 0, 255)).save(buffer, "JPEG")
    status, found, _ = await asked(port, "m", buffer.getvalue(), {"Content-Type": "image/jpeg"})
    assert (status, values(found)["labels"][0]) == (200, "blue")


def metadata(port: int, model: str) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", f"/v2/models/{model}")
    document = msgspec.json.decode(connection.getresponse().read())
    connection.close()
    return document


async def test_metadata_says_what_may_be_sent_and_what_comes_back(port: int, service: InferenceService) -> None:
    """Beside the model's own tensors; nothing of it where a model takes tensors alone, the same while it is out."""
    found = await asyncio.to_thread(metadata, port, "m")
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert found["edgekit_bytes"] == [
        {
            "name": "photo",
            "datatype": "BYTES",
            "shape": [-1],
            "input": "x",
            "kind": "image",
            "media_types": ["image/jpeg", "image/png"],
        }
    ]
    answers = {one.pop("name"): one for one in found["edgekit_answers"]}
    assert answers == {
        "tag": {"datatype": "FP32", "shape": [-1, 1]},
        "classes": {"datatype": "INT64", "shape": [-1, 2], "labels": ["red", "green", "blue"]},
        "scores": {"datatype": "FP32", "shape": [-1, 2]},
        "labels": {"datatype": "BYTES", "shape": [-1, 2]},
    }
    plain = await asyncio.to_thread(metadata, port, "plain")
    assert not {"edgekit_bytes", "edgekit_answers"} & plain.keys()


async def test_a_model_that_is_out_of_memory_is_described_and_takes_photos(tmp_path: Path) -> None:
    """The next photo loads it again."""
    photos, plain = with_processing(tmp_path / "m"), onnx_bundle(tmp_path / "plain")
    footprints = MemoryFootprints()
    for manifest in (photos, plain):
        footprints.put(manifest.digest, 400 * MIB)
    async with InferenceService(service=ServiceOptions(memory_budget_bytes=600 * MIB), footprints=footprints) as made:
        await made.activate("m", photos, tmp_path / "m")
        await made.activate("plain", plain, tmp_path / "plain")
        assert made.gauges()["m"]["loaded"] == 0
        await made.deactivate("plain")
        async with serve(App(made, max_request_bytes=2**20), http="127.0.0.1:0", socket=None) as bound:
            port = int(bound.url.rsplit(":", 1)[1])
            assert (await asyncio.to_thread(metadata, port, "m"))["edgekit_bytes"][0]["name"] == "photo"
            assert made.gauges()["m"]["loaded"] == 0
            assert (await asked(port, "m", photo((0, 255, 0)), PNG))[0] == 200
            assert made.gauges()["m"]["loaded"] == 1
