"""parse_manifest: valid manifests are read, and every manifest that could harm a device is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.manifest import (
    BLOCK_BYTES,
    FILE_PATH,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    Binding,
    FileEntry,
    Golden,
    Manifest,
    file_entry,
    parse_manifest,
    target_path,
)
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ManifestError
from edgekit.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FLOAT32, (None, 8))
Y = TensorSpec("y", DType.FLOAT32, (None, 3))


def sound(**changes: Any) -> Manifest:
    """A valid manifest with `changes`."""
    fields: dict[str, Any] = {
        "name": "digits",
        "version": "1.0.0",
        "target": "raspberry-pi-4",
        "runtime": "litert",
        "files": (file_entry("model.tflite", "model", bytes(100_000)), file_entry("golden.npz", "golden", b"abc")),
        "inputs": (Binding(X, X),),
        "outputs": (Binding(Y, Y),),
        "golden": Golden(8, (), True),
        "recipe": Recipe(),
    }
    return Manifest(**{**fields, **changes})


def refused(manifest: Manifest) -> str:
    """The error message for `manifest`."""
    with pytest.raises(ManifestError) as caught:
        parse_manifest(manifest.canonical_bytes())
    return str(caught.value)


def with_file(**changes: Any) -> Manifest:
    """A valid manifest with one more file, changed."""
    entry = msgspec.structs.replace(file_entry("report.json", "report", b"{}"), **changes)
    return sound(files=(*sound().files, entry))


def test_a_sound_manifest_parses_to_itself() -> None:
    """Parsing the canonical bytes gives the same manifest and digest."""
    manifest = sound(tools={"b": "2", "a": "1"})
    data = manifest.canonical_bytes()
    assert parse_manifest(data) == manifest
    assert manifest.digest == hashlib.sha256(data).hexdigest()
    assert parse_manifest(data).canonical_bytes() == data
    assert manifest.total_bytes == 100_003


def test_canonical_bytes_are_sorted_json_without_spaces() -> None:
    """Any JSON library can produce the same bytes."""
    data = sound(tools={"b": "2", "a": "ü"}).canonical_bytes()
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "path",
    [
        "../model.tflite",
        "..",
        ".",
        "",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:model",
        ".hidden",
        "-rf",
        "a\0b",
        "a\nb",
        "model.tflite\n",
        "é.bin",
        "a" * 128,
        "manifest.json",
        "Manifest.JSON",
    ],
)
def test_a_path_that_leaves_the_folder_or_hides_is_refused(path: str) -> None:
    """Only plain file names are accepted: no traversal, absolute path, device or reserved name."""
    assert repr(path) in refused(with_file(path=path))


@given(st.text(max_size=140))
def test_every_accepted_path_is_a_plain_name(path: str) -> None:
    """Every accepted name is one ASCII component that starts with a letter or digit."""
    try:
        manifest = parse_manifest(with_file(path=path).canonical_bytes())
    except ManifestError:
        return
    accepted = manifest.files[-1].path
    assert FILE_PATH.fullmatch(accepted)
    assert "/" not in accepted
    assert "\\" not in accepted
    assert accepted not in (".", "..", "manifest.json")


@pytest.mark.parametrize("path", ["model.tflite", "MODEL.tflite", "Golden.NPZ"])
def test_two_files_of_one_name_are_refused(path: str) -> None:
    """Names that differ only by case are one file on some file systems."""
    assert "is listed twice" in refused(with_file(path=path))


@pytest.mark.parametrize("size", [-1, MAX_FILE_BYTES + 1, 2**62])
def test_an_absurd_size_is_refused(size: int) -> None:
    """Sizes are checked before anything is allocated."""
    assert "is outside 0 to" in refused(with_file(size=size))


@pytest.mark.parametrize(
    ("size", "blocks", "expected"), [(0, 1, 0), (1, 0, 1), (BLOCK_BYTES, 2, 1), (BLOCK_BYTES + 1, 1, 2)]
)
def test_the_number_of_blocks_must_be_that_of_the_size(size: int, blocks: int, expected: int) -> None:
    """There must be exactly one digest per block."""
    text = refused(with_file(size=size, blocks=("0" * 64,) * blocks))
    assert f"{blocks} block digests for {size} bytes, expected {expected}" in text


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n", "../" + "0" * 61])
def test_a_digest_that_is_not_one_is_refused(digest: str) -> None:
    """Digests become names in the store, so they must be 64 lower-case hex digits."""
    assert "not 64 hex digits" in refused(with_file(sha256=digest))
    assert "not 64 hex digits" in refused(with_file(blocks=(digest,)))


def test_too_many_files_are_refused() -> None:
    """The number of files is limited."""
    many = tuple(file_entry(f"f{n}", "report", b"") for n in range(300))
    assert "302 files, the limit is 256" in refused(sound(files=(*sound().files, *many)))


def test_a_model_and_golden_samples_there_must_be_one_of_each() -> None:
    """No model, two models or no golden samples are refused."""
    model, golden = sound().files
    for files in ((golden,), (model,), (model, golden, msgspec.structs.replace(model, path="second"))):
        assert "exactly one file with role" in refused(sound(files=files))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"},
        {"name": "Digits"},
        {"name": ""},
        {"name": "a" * 64},
        {"name": "a\n"},
        {"target": "a/b"},
        {"target": "*"},
        {"version": "1.0"},
        {"version": "01.0.0"},
        {"version": "1.0.0\n"},
        {"version": "1.0.0/.."},
        {"version": "9999999999.0.0"},
        {"format": 2},
        {"inputs": ()},
        {"outputs": ()},
        {"inputs": (Binding(X, X, permute=(0, 0)),)},
        {"inputs": (Binding(X, X, permute=(1,)),)},
        {"inputs": (Binding(X, TensorSpec("x", DType.INT8, (1, 8))),)},
        {"inputs": (Binding(X, TensorSpec("x", DType.INT8, (1, 8)), scale=-0.5),)},
    ],
    ids=str,
)
def test_an_identity_or_binding_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    """Names are used in paths and topics, and bindings in the runtime."""
    assert "manifest is not valid" in refused(sound(**changes))


def test_all_faults_are_told_together() -> None:
    """The message has all faults, so that the author can correct them at once."""
    text = refused(sound(name="A", version="x", files=()))
    for part in ("name 'A'", "version 'x'", "role 'model'", "role 'golden'"):
        assert part in text


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b":", b": ", 1),
        lambda data: b'{"zzz":1,' + data[1:],
        lambda data: data[:-1] + b',"name":"digits"}',
        lambda data: json.dumps(dict(reversed(json.loads(data).items())), separators=(",", ":")).encode(),
        lambda data: data.replace(b'"digits"', b'"d\\u0069gits"'),
    ],
    ids=["newline", "space before", "space inside", "unknown key", "key twice", "other order", "escaped letter"],
)
def test_bytes_that_are_not_canonical_are_refused(change: Any) -> None:
    """A manifest has exactly one encoding, so that a signature has one meaning."""
    data = change(sound().canonical_bytes())
    with pytest.raises(ManifestError):
        parse_manifest(data)


def test_a_recipe_that_makes_no_sense_is_a_manifest_error() -> None:
    """parse_manifest raises only ManifestError."""
    data = sound().canonical_bytes().replace(b'"minmax"', b'"linmax"')
    with pytest.raises(ManifestError, match="linmax"):
        parse_manifest(data)


def test_a_manifest_over_the_limit_is_not_even_parsed() -> None:
    """The size is checked before parsing."""
    with pytest.raises(ManifestError, match=f"the limit is {MAX_MANIFEST_BYTES}"):
        parse_manifest(b"[" * (MAX_MANIFEST_BYTES + 1))


@given(st.binary(max_size=300))
def test_garbage_is_a_manifest_error(data: bytes) -> None:
    """Any other bytes give ManifestError and no other error."""
    with pytest.raises(ManifestError):
        parse_manifest(data)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_a_manifest_error(opening: bytes) -> None:
    """A million brackets do not exhaust the stack, also not in a known field."""
    for data in (opening * 500_000, b'{"requires":' + opening * 500_000):
        with pytest.raises(ManifestError):
            parse_manifest(data)


@given(st.data())
def test_one_damaged_byte_is_noticed(data: st.DataObject) -> None:
    """A changed byte gives an error or another digest."""
    manifest = sound()
    raw = bytearray(manifest.canonical_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = parse_manifest(bytes(raw))
    except ManifestError:
        return
    assert found != manifest
    assert found.digest == hashlib.sha256(raw).hexdigest() != manifest.digest


def test_blocks_of_a_file_are_digests_of_64_kib_each() -> None:
    """The last block can be shorter; an empty file has no blocks."""
    data = bytes(range(256)) * 600
    entry = file_entry("f", "model", data)
    assert entry.size == 153_600
    assert entry.blocks == tuple(hashlib.sha256(data[at : at + 65536]).hexdigest() for at in (0, 65536, 131072))
    assert file_entry("e", "report", b"") == FileEntry("e", "report", 0, hashlib.sha256(b"").hexdigest(), ())


def test_the_file_of_a_role_is_found_or_named_as_missing() -> None:
    """`file` returns the entry, or raises ManifestError with the role."""
    assert sound().file("model").path == "model.tflite"
    with pytest.raises(ManifestError, match="report"):
        sound().file("report")


def test_the_target_path_is_that_of_the_contract() -> None:
    """The path of a manifest in the TUF repository."""
    assert target_path("digits", "raspberry-pi-4", "1.0.0") == "models/digits/raspberry-pi-4/1.0.0/manifest.json"
