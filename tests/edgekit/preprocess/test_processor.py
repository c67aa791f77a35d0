"""Processing: steps that fit a model, steps that are refused, and conversion of bytes."""

from __future__ import annotations

import io
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekit.decoding import decode_image
from edgekit.errors import DataError, ManifestError
from edgekit.preprocess import Processing, Processor, processing_faults
from edgekit.tensors import DType, TensorSpec

IMAGE = TensorSpec("image", DType.FLOAT32, (None, 3, 8, 8))
LOGITS = TensorSpec("logits", DType.FLOAT32, (None, 4))
LABELS = ("ant", "bee", "cat", "dog")
DOCUMENT = """
[[before]]
input = "image"
steps = [
  {do = "decode-image", colour = "rgb", max_pixels = 10000},
  {do = "resize", height = 8, width = 8, method = "pillow-bilinear"},
  {do = "scale", by = 0.00392156862745098},
  {do = "normalize", mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25]},
  {do = "layout", to = "CHW"},
]

[[after]]
do = "softmax"

[[after]]
do = "top-k"
k = 2
labels = ["ant", "bee", "cat", "dog"]
"""


def parsed(text: str) -> Processing:
    return msgspec.toml.decode(text, type=Processing)


def processor(text: str = DOCUMENT, inputs=(IMAGE,), outputs=(LOGITS,), files=None) -> Processor:
    return Processor(parsed(text), inputs, outputs, read=(files or {}).__getitem__, decode_image=decode_image)


def picture(height: int = 20, width: int = 30, kind: str = "PNG", mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(height)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def raw(*items: bytes) -> np.ndarray:
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def test_bytes_become_the_models_input() -> None:
    """Two images of different sizes in one request equal the same steps done by hand."""
    data = picture()
    found = processor().before({"image": raw(data, picture(9, 9))})["image"]
    by_hand = np.asarray(Image.open(io.BytesIO(data)).resize((8, 8), Image.Resampling.BILINEAR), np.float32)
    expected = ((by_hand * np.float32(1 / 255) - np.float32(0.5)) / np.float32(0.25)).transpose(2, 0, 1)
    assert found.shape == (2, 3, 8, 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_tensors_pass_as_they_are() -> None:
    given = {"image": np.zeros((1, 3, 8, 8), np.float32)}
    one = processor()
    assert not one.has_raw(given)
    assert one.before(given)["image"] is given["image"]


def test_outputs_become_labels() -> None:
    one = processor()
    found = one.after({"logits": np.array([[0, 3, 1, 2]], np.float32)})
    assert list(found) == [spec.name for spec in one.outputs] == ["classes", "scores", "labels"]
    assert found["labels"].tolist() == [[b"bee", b"dog"]]
    assert found["scores"].sum() < 1


def test_a_document_survives_the_manifest() -> None:
    """TOML to JSON and back gives the same value."""
    processing = parsed(DOCUMENT)
    assert msgspec.json.decode(msgspec.json.encode(processing, order="sorted"), type=Processing) == processing


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_with_8_bits_is_decoded(mode: str) -> None:
    """Grey, palette, transparent and CMYK images become three channels."""
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert decode_image(picture(kind=kind, mode=mode), "rgb", 1000, False).shape == (20, 30, 3)


def test_colour_orders() -> None:
    data = picture()
    rgb, bgr, grey = (decode_image(data, colour, 1000, False) for colour in ("rgb", "bgr", "grey"))
    np.testing.assert_array_equal(rgb[:, :, ::-1], bgr)
    assert grey.shape == (20, 30, 1)


def test_a_picture_is_turned_only_where_that_is_asked() -> None:
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert decode_image(buffer.getvalue(), "rgb", 100, False).shape == (4, 5, 3)
    assert decode_image(buffer.getvalue(), "rgb", 100, True).shape == (5, 4, 3)


def bomb() -> bytes:
    """A PNG of 1 kB that declares 30,000 by 30,000 pixels; its rows are missing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    size = (30_000).to_bytes(4, "big")
    head = chunk(b"IHDR", size + size + b"\x08\x02\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def many_scans() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 200 + b"\xff\xd9"


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (4, 4)).save(buffer, "GIF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no JPEG or PNG"),
        (b"\xff\xd8\xff", "no JPEG or PNG"),
        (gif(), "no JPEG or PNG"),
        (picture()[:-40], "damaged"),
        (picture(kind="JPEG")[:200], "JPEG or PNG|damaged"),
        (picture(200, 200), "200 by 200, the limit is 10000 pixels"),
        (bomb(), "30000 by 30000|damaged"),
        (sixteen_bits(), "mode I;16, expected 8 bits"),
        (many_scans(), "scans, the limit is 128"),
    ],
)
def test_bytes_that_are_no_picture_are_the_clients_fault(data: bytes, says: str) -> None:
    """Each gives DataError with the row, which the endpoint returns as 400."""
    with pytest.raises(DataError, match=says) as caught:
        processor().before({"image": raw(picture(), data)})
    assert str(caught.value).startswith("image[1]: ")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["PNG", "JPEG"]), st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damaged_pictures_are_decoded_or_refused(kind: str, at: int, noise: bytes) -> None:
    """Changed bytes give an array or DataError, and no other error."""
    data = bytearray(picture(kind=kind))
    at %= len(data)
    data[at : at + len(noise)] = noise
    try:
        found = decode_image(bytes(data), "rgb", 10_000, False)
    except DataError:
        return
    assert found.ndim == 3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.empty((0,), object), "0 rows of bytes"),
        (raw(*[b"x"] * 257), "257 rows of bytes, expected 1 to 256"),
        (np.array([[b"a", b"b"]], object), r"shape \[1, 2\]"),
        (np.array(["text"], object), "some elements are not bytes"),
    ],
)
def test_rows_are_bounded(value: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        processor().before({"image": value})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("height = 8", "height = 9", r"end in float32 \[3, 9, 8\], the model takes float32 \[3, 8, 8\] per row"),
        ('{do = "layout", to = "CHW"},', "", r"end in float32 \[8, 8, 3\]"),
        ("mean = [0.5, 0.5, 0.5]", "mean = [0.5, 0.5]", "mean has 2 numbers for 3 channels"),
        ("std = [0.25, 0.25, 0.25]", "std = [0.0]", "above 0"),
        ('{do = "scale", by = 0.00392156862745098},\n', '{do = "decode-wav", sample_rate = 8000},', "expected bytes"),
        ("max_pixels = 10000", "max_pixels = 100000000000", "max_pixels is 100000000000"),
        ("k = 2", "k = 5", "k is 5, expected 1 to"),
        ('"cat", "dog"', '"cat"', "3 labels for 4 classes"),
        ('do = "softmax"', 'do = "softmax"\nof = "nothing"', "no tensor 'nothing', found logits"),
        ('input = "image"', 'input = "photo"', "no input 'photo', expected image"),
        ("height = 8", "height = 0", "height is 0, expected 1 to 65536"),
    ],
)
def test_processing_that_does_not_fit_the_model_is_refused(old: str, new: str, says: str) -> None:
    """Conversion and parse_manifest refuse it, with found and expected values."""
    assert old in DOCUMENT
    with pytest.raises(ManifestError, match=says):
        processor(DOCUMENT.replace(old, new))


def test_all_faults_are_named_together() -> None:
    found = processing_faults(
        parsed(DOCUMENT.replace("height = 8", "height = 9").replace("k = 2", "k = 9")), [IMAGE], [LOGITS]
    )
    assert len(found) == 2


def test_pillow_methods_ask_for_8_bits() -> None:
    text = DOCUMENT.replace('{do = "resize"', '{do = "cast", dtype = "float32"}, {do = "resize"')
    with pytest.raises(ManifestError, match=r"resize: the input is float32 .*expected uint8"):
        processor(text)


TEXT = """
[[before]]
input = "ids"
raw = "text"
steps = [{do = "word-pieces", vocabulary = "vocab.txt", length = 6, mask = "mask", types = "types"}]
"""
VOCABULARY = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\nworld\n"


def test_text_fills_three_inputs() -> None:
    """Each row gives indices, mask and types; the bytes have a name of their own."""
    specs = [TensorSpec(name, DType.INT64, (None, 6)) for name in ("ids", "mask", "types")]
    one = processor(TEXT, specs, files={"vocab.txt": VOCABULARY})
    found = one.before({"text": raw(b"Hello, world", b"")})
    assert {name: value.tolist() for name, value in found.items()} == {
        "ids": [[2, 4, 1, 5, 3, 0], [2, 3, 0, 0, 0, 0]],
        "mask": [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]],
        "types": [[0] * 6, [0] * 6],
    }
    with pytest.raises(DataError, match="'mask' is present, and 'text' fills it too"):
        one.before({"text": raw(b"a"), "mask": np.zeros((1, 6), np.int64)})


def test_sound_becomes_cepstra() -> None:
    spec = TensorSpec("x", DType.FLOAT32, (None, 98, 13, 1))
    steps = """[[before]]
steps = [
  {do = "decode-wav", sample_rate = 16000}, {do = "fit-length", samples = 16000},
  {do = "log-mel", sample_rate = 16000, frame_length = 400, frame_step = 160, fft_length = 512},
  {do = "mfcc", coefficients = 13}, {do = "expand-axis"},
]"""
    from tests.edgekit.preprocess.test_sound import tone, wav

    data = wav((tone(9000) * 32767).astype(np.int16))
    found = processor(steps, [spec]).before({"x": raw(data)})["x"]
    assert found.shape == (1, 98, 13, 1)
    assert np.isfinite(found).all()


def test_boxes_and_labels_of_one_tensor() -> None:
    """Steps for a detector with one output: split, corners, suppression, labels."""
    steps = """
[[after]]
do = "split-boxes"
[[after]]
do = "decode-boxes"
form = "cxcywh"
of = "boxes"
[[after]]
do = "nms"
most = 3
labels = ["ant", "bee"]
"""
    spec = TensorSpec("out", DType.FLOAT32, (None, 6, 5))
    one = processor(steps, outputs=[spec])
    out = np.zeros((1, 6, 5), np.float32)
    out[0, :, 0] = [10, 10, 4, 4, 0.9, 0.1]
    out[0, :, 1] = [10.5, 10, 4, 4, 0.8, 0.0]
    out[0, :, 2] = [30, 30, 4, 4, 0.0, 0.7]
    found = one.after({"out": out})
    assert [spec.name for spec in one.outputs] == list(found)
    assert found["count"].tolist() == [2]
    assert found["labels"].tolist() == [[b"ant", b"bee", b""]]
    np.testing.assert_allclose(found["boxes"][0, 0], [8, 8, 12, 12])


def test_anchors_are_a_file_of_the_bundle() -> None:
    steps = '[[after]]\ndo = "decode-boxes"\nform = "anchors"\nanchors = "anchors.npy"\nof = "b"\n'
    spec = TensorSpec("b", DType.FLOAT32, (None, 2, 4))
    buffer = io.BytesIO()
    np.save(buffer, np.array([[0.5, 0.5, 1, 1], [0.2, 0.2, 0.1, 0.1]], np.float32))
    one = processor(steps, outputs=[spec], files={"anchors.npy": buffer.getvalue()})
    np.testing.assert_allclose(one.after({"b": np.zeros((1, 2, 4), np.float32)})["b"][0, 0], [0, 0, 1, 1])
    with pytest.raises(ManifestError, match=r"anchors anchors.npy cannot be read as .npy"):
        processor(steps, outputs=[spec], files={"anchors.npy": b"no"})


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_casting_to_integers_rounds_and_holds(dtype: str) -> None:
    from edgekit.preprocess.before import Cast

    found = Cast(dtype).apply(np.array([-1e9, 0.5, 1.5, 1e9], np.float32), None)
    limits = np.iinfo(dtype)
    np.testing.assert_array_equal(found, [limits.min, 0, 2, limits.max])
    assert found.dtype == dtype


def test_the_largest_middle_part_is_cut_before_it_is_resized() -> None:
    """As Keras' smart_resize; an extremely narrow image needs little memory."""
    from edgekit.preprocess.image_steps import Resize

    tall = np.zeros((60_000, 2, 3), np.uint8)
    tall[29_999:30_001] = 9
    np.testing.assert_array_equal(Resize(4, 4, fit="crop", method="nearest").apply(tall, None), 9)
    framed = Resize(4, 4, fit="letterbox", fill=5.0).apply(np.zeros((2, 8, 1), np.uint8), None)
    np.testing.assert_array_equal(framed[:, 0, 0], [5, 0, 5, 5])
