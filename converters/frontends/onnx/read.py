"""Reads an .onnx file with its external data."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import checker, external_data_helper

from converters.frontends.files.sniff import KNOWN
from edgekit.errors import ModelFormatError


def read_model(path: Path) -> onnx.ModelProto:
    """The parsed file with its weights.

    Raises:
        ModelFormatError: The file is not ONNX, is truncated, or lacks its external data.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise _not_onnx(path, "the file cannot be parsed") from error
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise _not_onnx(path, "the model has no version, operator sets or outputs")
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, checker.ValidationError) as error:
        raise ModelFormatError(
            f"{path} keeps its weights in another file, which cannot be read: {error}",
            advice="Put the external data file beside the model, under its original name.",
        ) from error
    return model


def _not_onnx(path: Path, why: str) -> ModelFormatError:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
    return ModelFormatError(
        f"{path} ({size} bytes, begins with {head!r}) is not a model that edgekit can read, or is truncated: "
        f"read as ONNX, {why}",
        advice=f"{KNOWN} Copy or export the file again.",
    )
