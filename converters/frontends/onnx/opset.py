"""Brings a model to the one operator set that passes and backends know."""

from __future__ import annotations

import re

import onnx
from onnx import inliner, version_converter

from converters.foreign_text import SHOWN
from converters.frontends.onnx.foreign import one_line
from converters.frontends.onnx.nodes import all_nodes
from converters.frontends.onnx.repair import MAX_IR, MIN_IR
from converters.graph.graph import label
from edgekit.errors import ModelFormatError, UnsupportedOpError

CANONICAL_OPSET, MAX_OPSET = 17, 23
# The converter's messages where it has no rule for an operator.
NO_RULE = re.compile(r"No Adapter \w+ Version \$?\d+ for (\w+)|No Previous Version of (\w+) exists")


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operator set; 0 where the model names none."""
    return max((int(entry.version) for entry in model.opset_import if not entry.domain), default=0)


def at_opset(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model at the canonical operator set, or at its own where that is newer.

    Raises:
        ModelFormatError: The model names no operator set, or cannot be converted.
        UnsupportedOpError: ONNX has no such operator, or ONNX's converter cannot upgrade it.
    """
    version = opset_of(model)
    if not version:
        raise ModelFormatError(
            f"{source} names no version of ONNX's operators", advice=f"Export it again with opset {CANONICAL_OPSET}."
        )
    wanted = min(max(version, CANONICAL_OPSET), MAX_OPSET)
    if version == wanted:
        return model
    require_known_operators(model)
    try:
        converted = version_converter.convert_version(_without_newer(model, wanted), wanted)
    except (RuntimeError, ValueError, version_converter.ConvertError) as error:
        raise _not_converted(model, source, wanted, error) from error
    converted.ir_version = min(max(converted.ir_version, MIN_IR), MAX_IR)
    return converted


def _without_newer(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    """The model with the operators that opset `wanted` lacks written as ONNX defines them, by older operators."""
    schemas = {
        node.op_type: onnx.defs.get_schema(node.op_type, opset_of(model), "")
        for node in all_nodes(model.graph)
        if not node.domain and not onnx.defs.has(node.op_type, wanted, "")
    }
    written = sorted(kind for kind, schema in schemas.items() if schema.has_function)
    if not written:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for node in all_nodes(made.graph):
        if node.op_type in written and not node.domain:  # ONNX's inliner does not know the defaults
            given = {one.name for one in node.attribute}
            defaults = {name: one.default_value for name, one in schemas[node.op_type].attributes.items()}
            node.attribute.extend(one for name, one in defaults.items() if one.type and name not in given)
    return inliner.inline_selected_functions(made, [("", kind) for kind in written], inline_schema_functions=True)


def require_known_operators(model: onnx.ModelProto) -> None:
    """Check that the operator set has every operator of the model.

    Raises:
        UnsupportedOpError: It lacks one; the error names the operator and the layer.
    """
    version = opset_of(model)
    for node in all_nodes(model.graph):
        if not node.domain and not onnx.defs.has(node.op_type, version, ""):
            raise UnsupportedOpError(
                node.op_type,
                label(node),
                backend=f"any target: ONNX opset {version} has no such operator",
                advice=_other_opset(node.op_type, version),
            )


def _other_opset(operator: str, version: int) -> str:
    """Advice for an operator that opset `version` does not have: an opset that has it."""
    having = [one for one in range(CANONICAL_OPSET, MAX_OPSET + 1) if onnx.defs.has(operator, one, "")]
    later = [one for one in having if one > version]
    if later or having:
        return f"Export the model again with opset {(later or having)[0]}, which has it."
    return "Export the model again with operators of ONNX only (https://onnx.ai/onnx/operators)."


def _not_converted(
    model: onnx.ModelProto, source: str, wanted: int, error: Exception
) -> ModelFormatError | UnsupportedOpError:
    version, advice = opset_of(model), f"Export the model again with opset {CANONICAL_OPSET}."
    if found := NO_RULE.search(str(error)):
        operator = found.group(1) or found.group(2)
        layer = next((label(node) for node in all_nodes(model.graph) if node.op_type == operator), "")
        backend = f"any target: ONNX's converter cannot bring it from opset {version} to {wanted}"
        return UnsupportedOpError(operator, layer, backend=backend, advice=advice)
    return ModelFormatError(
        f"{source} uses ONNX opset {version} and cannot be converted to opset {wanted} ({SHOWN})",
        foreign_text=one_line(error),
        advice=advice,
    )
