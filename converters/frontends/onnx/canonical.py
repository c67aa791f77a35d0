"""The sequence of steps from an ONNX model to the canonical graph."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import checker, inliner

from converters.frontends.onnx.batch import name_batch
from converters.frontends.onnx.nodes import all_nodes, name_nodes
from converters.frontends.onnx.opset import MAX_IR, STANDARD, at_opset, require_known_operators
from converters.frontends.onnx.read import read_model
from converters.frontends.onnx.weights import drop_initializer_inputs, require_finite_weights
from converters.graph.graph import Graph, label
from edgekit.errors import ModelFormatError, UnsupportedOpError


def load_onnx(path: Path) -> Graph:
    """Read an .onnx file, and its external data file beside it if it has one.

    Raises:
        ModelFormatError: The file is not ONNX, is truncated or too old, lacks its external data, or has free axes.
        UnsupportedOpError: A node's domain is not ONNX's own.
    """
    return canonical(read_model(path), str(path))


def canonical(model: onnx.ModelProto, source: str) -> Graph:
    """Convert a parsed model to the canonical form.

    Raises:
        ModelFormatError, UnsupportedOpError: As `load_onnx`.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    for node in all_nodes(model.graph):
        if node.domain not in STANDARD:
            raise UnsupportedOpError(
                f"{node.domain}::{node.op_type}",
                label(node),
                backend="any target: it is a custom operator",
                advice="Export the model with standard ONNX operators only.",
            )
    model = at_opset(model, source)
    model.ir_version = min(model.ir_version, MAX_IR)
    require_known_operators(model)
    try:
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelFormatError(f"{source} is not a valid ONNX model: {error}") from error
    require_finite_weights(model, source)
    drop_initializer_inputs(model)
    name_batch(model, source)
    name_nodes(model)
    return Graph(model)
