"""Brings a model to the one operator set that passes and backends know."""

from __future__ import annotations

import onnx
from onnx import version_converter

from converters.frontends.onnx.nodes import all_nodes
from converters.graph.graph import label
from edgekit.errors import ModelFormatError, UnsupportedOpError

MIN_OPSET, CANONICAL_OPSET, MAX_OPSET = 11, 17, 23
MAX_IR = 11  # of the file format: the oldest supported ONNX Runtime refuses newer ones
STANDARD = ("", "ai.onnx")


def at_opset(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model at the canonical operator set, or at its own where that is newer.

    Raises:
        ModelFormatError: The operator set is too old, or cannot be converted.
        UnsupportedOpError: ONNX has no such operator.
    """
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
    if not versions or versions[0] < MIN_OPSET:
        version = versions[0] if versions else "none"
        raise ModelFormatError(
            f"{source} uses ONNX opset {version}, expected {MIN_OPSET} or newer",
            advice=f"Export it again with opset {CANONICAL_OPSET}.",
        )
    standard = [entry for entry in model.opset_import if entry.domain in STANDARD]
    del model.opset_import[:]
    model.opset_import.extend(standard[:1])
    wanted = min(max(versions[0], CANONICAL_OPSET), MAX_OPSET)
    if versions[0] == wanted:
        return model
    require_known_operators(model)
    try:
        return version_converter.convert_version(model, wanted)
    except (RuntimeError, version_converter.ConvertError) as error:
        raise ModelFormatError(
            f"{source} uses ONNX opset {versions[0]} and cannot be converted to opset {wanted}: {error}",
            advice=f"Export it again with opset {CANONICAL_OPSET}.",
        ) from error


def require_known_operators(model: onnx.ModelProto) -> None:
    """Check that the operator set has every operator of the model.

    Raises:
        UnsupportedOpError: It lacks one; the error names the operator and the layer.
    """
    version = model.opset_import[0].version
    for node in all_nodes(model.graph):
        if not onnx.defs.has(node.op_type, version, ""):
            raise UnsupportedOpError(
                node.op_type, label(node), backend=f"any target: ONNX opset {version} has no such operator"
            )
