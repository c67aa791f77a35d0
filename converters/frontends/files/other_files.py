"""Recognizes model files of other tools by their first bytes, and says how to export them. It loads nothing."""

from __future__ import annotations

import re
from pathlib import Path

from converters.frontends.files.export_lines import PYTORCH, UNPACK, weights_only
from edgekit.errors import ModelFormatError

DATA = "Give data with --data."
ONNX_FILE = "Give the ONNX file that it was made from."
ORIGINAL = "Give the model that it was made from."

# First bytes, what the file is, and what to do.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x93NUMPY", "holds an array (.npy), not a model", DATA),
    (b"ftrt", "is a TensorRT engine, which fits one GPU and one version of TensorRT", ONNX_FILE),
    (b"GGUF", "is a language model (GGUF)", ORIGINAL),
    (b"RKNN", "is a model for Rockchip NPUs", ONNX_FILE),
    (b"\x01HEF", "is a model for Hailo accelerators", ONNX_FILE),
    (b"LITERTLM", "is a language model for LiteRT-LM", ORIGINAL),
    (b"7767517", "is a model of ncnn", ONNX_FILE),
    (
        b"version https://git-lfs",
        "is only a pointer of Git LFS, not the file itself",
        "Run `git lfs pull`, and try again.",
    ),
    (
        b"model_checkpoint_path:",
        "is the index of TensorFlow checkpoints, which hold weights only",
        weights_only("tensorflow"),
    ),
    (b"\x1f\x8b", "is packed with gzip", UNPACK),
    (b"\xfd7zXZ", "is packed with xz", UNPACK),
    (b"BZh", "is packed with bzip2", UNPACK),
    (b"\x28\xb5\x2f\xfd", "is packed with Zstandard", UNPACK),
    (b"7z\xbc\xaf", "is packed with 7-Zip", UNPACK),
    (b"Rar!", "is packed with RAR", UNPACK),
    (b"%PDF", "is a PDF document", "Download the model file itself."),
)
# Identifiers of FlatBuffers at byte 4.
_FLATBUFFERS = {
    b"ORTM": ("is a model in ONNX Runtime's own format (.ort)", "Give the .onnx file that it was made from."),
    b"ET12": ("is a program of ExecuTorch (.pte)", f"Export the original model. {PYTORCH}"),
}
_TEXT: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"\s*<(!doctype html|html)", re.I), "is a web page, not a model", "Download the file itself."),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?<net\b"), "is a model of OpenVINO", ORIGINAL),
    (re.compile(rb'\s*\{[^}]{0,400}"(modelTopology|format)"'), "is a model of TensorFlow.js", ORIGINAL),
    (re.compile(rb"\s*node\s*\{\s*name:"), "is a TensorFlow graph as text (.pbtxt)", weights_only("frozen")),
    (re.compile(rb"\s*(name:|layer\s*\{|input:)\s"), "is a network of Caffe as text", "Convert it to ONNX first."),
    (re.compile(rb"\s*\[net\]"), "is a network of Darknet", "Convert it to ONNX first."),
)


def refuse_other_file(path: Path, head: bytes) -> None:
    """Refuse a file that another tool wrote, from its first bytes.

    Raises:
        ModelFormatError: The file is of a known other kind; the error says how to export the model.
    """
    for magic, what, advice in _MAGIC:
        if head.startswith(magic):
            raise ModelFormatError(f"{path} {what}", advice=advice)
    if head[4:8] in _FLATBUFFERS:
        what, advice = _FLATBUFFERS[head[4:8]]
        raise ModelFormatError(f"{path} {what}", advice=advice)
    for pattern, what, advice in _TEXT:
        if pattern.match(head):
            raise ModelFormatError(f"{path} {what}", advice=advice)
    if _is_safetensors(head):
        raise ModelFormatError(
            f"{path} is a safetensors file: it holds weights and no model",
            advice=weights_only("safetensors", path.name),
        )
    if operator := _first_operator(head):
        raise ModelFormatError(
            f"{path} is a frozen TensorFlow graph (.pb), which begins with the operator {operator}",
            advice=weights_only("frozen", path.name),
        )
    _refuse_by_name(path)


def refuse_folder(path: Path) -> None:
    """Refuse a folder that another tool wrote.

    Raises:
        ModelFormatError: The folder is of a known other kind; the error says how to export the model.
    """
    names = {entry.name for entry in path.iterdir()}
    if "config.json" in names and names & {"model.safetensors", "pytorch_model.bin", "tf_model.h5"}:
        raise ModelFormatError(
            f"{path} is a model of Hugging Face Transformers",
            advice=f"Export it: pip install optimum-onnx, then: optimum-cli export onnx --model {path.name} OUTPUT",
        )
    if "Manifest.json" in names and "Data" in names:
        raise ModelFormatError(f"{path} is a model of Core ML", advice=ORIGINAL)
    if any(name.endswith((".pdmodel", ".pdiparams")) for name in names):
        raise ModelFormatError(f"{path} is a model of PaddlePaddle", advice=weights_only("paddle", path.name))
    if any(name.endswith(".index") for name in names) and any(".data-" in name for name in names):
        raise ModelFormatError(
            f"{path} holds a TensorFlow checkpoint: weights and no model", advice=weights_only("tensorflow")
        )
    inside = [
        one for pattern in ("*.onnx", "*.keras", "*.tflite", "*.pt2", "*/saved_model.pb") for one in path.glob(pattern)
    ]
    if inside:
        model = inside[0].parent if inside[0].name == "saved_model.pb" else inside[0]
        raise ModelFormatError(f"{path} is a folder that contains a model", advice=f"Give the model itself: {model}")


def _refuse_by_name(path: Path) -> None:
    """Refuse files that only their names tell."""
    if path.name == "saved_model.pb":
        raise ModelFormatError(
            f"{path} is one file of a SavedModel, which is a folder", advice=f"Give the folder: {path.parent}"
        )
    kinds = {
        ".pdmodel": ("is a model of PaddlePaddle", weights_only("paddle", path.parent.name)),
        ".pdiparams": ("holds the weights of a PaddlePaddle model", weights_only("paddle", path.parent.name)),
        ".mlmodel": ("is a model of Core ML", ORIGINAL),
        ".caffemodel": ("holds the weights of a Caffe network", "Convert it to ONNX first."),
        ".index": ("is a part of a TensorFlow checkpoint: weights and no model", weights_only("tensorflow")),
        ".meta": ("is a part of a TensorFlow 1 checkpoint", weights_only("tensorflow")),
    }
    what, advice = kinds.get(path.suffix.lower(), ("", ""))
    if ".data-0" in path.name:
        what, advice = kinds[".index"]
    if what:
        raise ModelFormatError(f"{path} {what}", advice=advice)


def _is_safetensors(head: bytes) -> bool:
    size = int.from_bytes(head[:8], "little")
    return 2 <= size < 2**32 and head[8:9] == b"{" and head[9:10] in (b'"', b"}", b" ")


def _first_operator(head: bytes) -> str:
    """The operator of the first node of a TensorFlow GraphDef: a message of field 1 with name and operator."""
    if head[:1] != b"\x0a":
        return ""
    try:
        _, start = _varint(head, 1)
        name = _field(head, start, 0x0A)
        operator = _field(head, name[1], 0x12)
    except (IndexError, ValueError):
        return ""
    text = operator[0]
    return text.decode() if re.fullmatch(rb"[A-Z]\w{1,60}", text) and re.fullmatch(rb"[\w./\-]{1,300}", name[0]) else ""


def _field(data: bytes, at: int, tag: int) -> tuple[bytes, int]:
    """The bytes of a field with `tag` at `at`, and the place behind it."""
    if data[at] != tag:
        raise ValueError
    size, start = _varint(data, at + 1)
    if start + size > len(data):
        raise ValueError
    return data[start : start + size], start + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
        shift += 7
