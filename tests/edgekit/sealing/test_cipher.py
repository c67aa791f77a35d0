"""Encryption of files and content keys: sealed content can be opened again, and every change is refused."""

import io

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import BLOCK_BYTES, Encryption, file_entry, parse_manifest
from edgekit.errors import ManifestError, SealError
from edgekit.sealing.cipher import FRAME_BYTES, KEY_BYTES, TAG_BYTES, FileCipher, unwrap, wrap
from tests.simulators.bundles import manifest_of

KEY = bytes(range(KEY_BYTES))
MANIFEST = manifest_of()
SIZES = (0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, 3 * FRAME_BYTES + 7)


def sealed(data, *, key=KEY, manifest=MANIFEST, path="model.onnx"):
    return b"".join(FileCipher(key, manifest, path).seal(io.BytesIO(data), len(data)))


def opened(data, *, key=KEY, manifest=MANIFEST, path="model.onnx"):
    return b"".join(FileCipher(key, manifest, path).open(io.BytesIO(data)))


def plain(size):
    return bytes(i * 7 % 251 for i in range(size))


@pytest.mark.parametrize("size", SIZES)
def test_what_was_sealed_comes_back(size):
    """At every edge of a frame. A sealed frame has the length of a block; an empty file has one frame."""
    data = plain(size)
    found = sealed(data)
    assert opened(found) == data
    assert len(found) == size + TAG_BYTES * max(1, -(-size // FRAME_BYTES))
    assert FRAME_BYTES + TAG_BYTES == BLOCK_BYTES
    if size > 16:
        assert data[:16] not in found


def test_a_file_that_ends_early_is_not_sealed():
    """The file is shorter than its stated size."""
    with pytest.raises(SealError, match="ends before byte 11"):
        list(FileCipher(KEY, MANIFEST, "model.onnx").seal(io.BytesIO(b"0123456789"), 11))


FRAMES = sealed(plain(3 * FRAME_BYTES))
FIRST, SECOND, THIRD = (FRAMES[at : at + BLOCK_BYTES] for at in range(0, len(FRAMES), BLOCK_BYTES))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(SECOND + FIRST + THIRD, id="frames swapped"),
        pytest.param(FIRST + SECOND, id="cut at a frame"),
        pytest.param(FRAMES[:-1], id="cut in a frame"),
        pytest.param(FIRST + THIRD, id="a frame left out"),
        pytest.param(FIRST + FIRST + SECOND + THIRD, id="a frame doubled"),
        pytest.param(FRAMES + THIRD, id="a frame added"),
        pytest.param(FRAMES + b"\0", id="a byte added"),
        pytest.param(FRAMES[:TAG_BYTES], id="less than a frame"),
        pytest.param(FRAMES[: TAG_BYTES - 1], id="less than a tag"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_frames_belong_where_they_were_sealed(data):
    """The order, the number and the end of the frames are authenticated."""
    with pytest.raises(SealError, match=r"model\.onnx cannot be opened: frame \d is not what was sealed there"):
        opened(data)


@pytest.mark.parametrize(
    "other",
    [
        {"key": bytes(KEY_BYTES)},
        {"path": "golden.npz"},
        {"manifest": msgspec.structs.replace(MANIFEST, name="other")},
        {"manifest": msgspec.structs.replace(MANIFEST, version="9.0.0")},
        {"manifest": msgspec.structs.replace(MANIFEST, target="other")},
    ],
)
def test_a_file_opens_as_itself_only(other):
    """It does not open with another key, name, version, target or path."""
    with pytest.raises(SealError):
        opened(sealed(b"weights"), **other)


@given(st.integers(0, len(FRAMES) * 8 - 1))
@settings(max_examples=40, deadline=None)
def test_no_bit_can_be_flipped(bit):
    """A flipped bit anywhere in any frame is refused."""
    data = bytearray(FRAMES)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError):
        opened(bytes(data))


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_strangers_bytes_are_refused_by_name(data):
    """Bytes that were never sealed give SealError."""
    with pytest.raises(SealError):
        opened(data)


PRIVATE, ONCE = X25519PrivateKey.generate(), X25519PrivateKey.generate()
WRAPPED = wrap(KEY, PRIVATE.public_key().public_bytes_raw(), ONCE, MANIFEST, "cameras")


def test_a_wrapped_key_opens_with_the_class_key():
    """The wrapped key opens, and has the length of a key and a tag."""
    assert unwrap(PRIVATE, WRAPPED, MANIFEST) == KEY
    assert len(WRAPPED.wrapped) == 2 * (KEY_BYTES + TAG_BYTES)


@pytest.mark.parametrize(
    ("private", "wrapped", "manifest"),
    [
        pytest.param(X25519PrivateKey.generate(), WRAPPED, MANIFEST, id="another class"),
        pytest.param(PRIVATE, WRAPPED, msgspec.structs.replace(MANIFEST, version="9.0.0"), id="another bundle"),
        pytest.param(PRIVATE, msgspec.structs.replace(WRAPPED, device_class="b"), MANIFEST, id="renamed"),
        pytest.param(PRIVATE, msgspec.structs.replace(WRAPPED, wrapped="00" * 48), MANIFEST, id="changed"),
        pytest.param(
            PRIVATE, msgspec.structs.replace(WRAPPED, public="00" * 32), MANIFEST, id="a point without secret"
        ),
        pytest.param(PRIVATE, msgspec.structs.replace(WRAPPED, public="01" * 32), MANIFEST, id="another point"),
    ],
)
def test_a_wrapped_key_opens_for_its_class_and_bundle_only(private, wrapped, manifest):
    """Another class key, another bundle, another class name or a changed byte gives SealError."""
    with pytest.raises(SealError):
        unwrap(private, wrapped, manifest)


def test_a_public_key_without_secret_is_not_wrapped_for():
    """Points of small order would give a key that everybody knows."""
    with pytest.raises(SealError, match="not a usable X25519 public key"):
        wrap(KEY, bytes(32), ONCE, MANIFEST, "cameras")


SEALED = msgspec.structs.replace(
    MANIFEST,
    files=tuple(file_entry(entry.path, entry.role, bytes(64)) for entry in MANIFEST.files),
    encryption=Encryption((WRAPPED,)),
)


def test_manifests_that_are_not_sealed_are_as_they_always_were():
    """Manifests without sealing have no field for it; a sealed manifest is read back with its encryption."""
    assert b"encryption" not in MANIFEST.canonical_bytes()
    assert MANIFEST.sealed is None
    assert parse_manifest(SEALED.canonical_bytes()).sealed == Encryption((WRAPPED,))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"keys": ()}, "for 0 device classes, expected 1 to 64"),
        ({"keys": (WRAPPED, WRAPPED)}, "twice for the same device class"),
        ({"format": "edgekit-seal-2"}, "sealed as 'edgekit-seal-2', this edgekit opens edgekit-seal-1"),
        ({"keys": (msgspec.structs.replace(WRAPPED, device_class="A b"),)}, "device class 'A b' is not of the form"),
        ({"keys": (msgspec.structs.replace(WRAPPED, public="zz"),)}, "'cameras' is malformed"),
        ({"keys": (msgspec.structs.replace(WRAPPED, wrapped="00"),)}, "'cameras' is malformed"),
        ({"keys": (msgspec.structs.replace(WRAPPED, key_id=""),)}, "'cameras' is malformed"),
    ],
)
def test_an_encryption_that_says_nonsense_is_refused(fields, says):
    """The check of the manifest refuses it, before any file is opened."""
    made = msgspec.structs.replace(SEALED, encryption=msgspec.structs.replace(SEALED.encryption, **fields))
    with pytest.raises(ManifestError, match=says):
        parse_manifest(made.canonical_bytes())


def test_a_sealed_file_has_at_least_its_tag():
    """A sealed file of 0 bytes has no frame, so the manifest is refused."""
    files = tuple(file_entry(e.path, e.role, b"") if e.role == "golden" else e for e in MANIFEST.files)
    with pytest.raises(ManifestError, match="a sealed file has at least 16"):
        parse_manifest(msgspec.structs.replace(SEALED, files=files).canonical_bytes())


TEXT = st.text(max_size=100)


@given(st.lists(st.builds(type(WRAPPED), TEXT, TEXT, TEXT, TEXT), max_size=3), st.sampled_from(["edgekit-seal-1", ""]))
@settings(deadline=None)
def test_every_encryption_is_read_or_refused(keys, kind):
    """A manifest is refused, or its wrapped keys have a form that `unwrap` can check."""
    made = msgspec.structs.replace(SEALED, encryption=Encryption(tuple(keys), kind))
    try:
        found = parse_manifest(made.canonical_bytes())
    except ManifestError:
        return
    for key in found.sealed.keys:
        with pytest.raises(SealError):
            unwrap(PRIVATE, key, found)
