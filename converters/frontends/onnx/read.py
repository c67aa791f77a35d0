"""Reads an .onnx file with its external data."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import checker, external_data_helper

from converters.foreign_text import SHOWN
from converters.frontends.files.sniff import KNOWN
from converters.frontends.onnx.foreign import one_line
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
        raise _without_weights(model, path, error) from error
    return model


def _without_weights(model: onnx.ModelProto, path: Path, error: Exception) -> ModelFormatError:
    tensors = [one for one in model.graph.initializer if one.external_data]
    places = sorted({external_data_helper.ExternalDataInfo(one).location for one in tensors})
    folder = path.parent.resolve()
    outside = [place for place in places if not (folder / place).resolve().is_relative_to(folder)]
    missing = [place for place in places if not (folder / place).is_file()]
    if outside:
        why = "which lies outside of the model's folder and cannot be read"
    else:
        why = "which is not beside it" if missing else f"which does not fit the model ({SHOWN})"
    where = f"in {', '.join(outside or missing or places) or 'another file'}, {why}"
    return ModelFormatError(
        f"{path} keeps its weights {where}",
        advice="Put the external data file beside the model, under its original name.",
        foreign_text=one_line(error),
    )


def _not_onnx(path: Path, why: str) -> ModelFormatError:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
    return ModelFormatError(
        f"{path} ({size} bytes, begins with {head!r}) is not a model that edgekit can read, or is truncated: "
        f"read as ONNX, {why}",
        advice=f"{KNOWN} Copy or export the file again.",
    )
