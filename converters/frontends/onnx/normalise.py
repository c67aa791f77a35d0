"""The sequence of steps from an ONNX model to the canonical graph."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import checker

from converters.foreign_text import SHOWN
from converters.frontends.interface.sizes import settle
from converters.frontends.interface.step import canonical_graph
from converters.frontends.interface.undecided import branch_refusal
from converters.frontends.onnx import classical
from converters.frontends.onnx.branches import fold_branches
from converters.frontends.onnx.contrib import OPTIMIZED_ADVICE, rewrite_contrib
from converters.frontends.onnx.floats import all_float32, dtypes_of
from converters.frontends.onnx.foreign import one_line, place_of
from converters.frontends.onnx.masked_writes import with_masked_writes
from converters.frontends.onnx.nodes import all_nodes, name_nodes
from converters.frontends.onnx.opset import at_opset, require_known_operators
from converters.frontends.onnx.quantized import refuse_quantized
from converters.frontends.onnx.repair import repaired
from converters.frontends.onnx.repeatable import require_inference, require_repeatable
from converters.frontends.onnx.sequences import with_tensors
from converters.frontends.onnx.shapes import correct_shapes, known_shapes
from converters.frontends.onnx.source import inlined, source_model
from converters.frontends.onnx.tails import refuse_tail, tail_of
from converters.frontends.onnx.weights import require_finite_weights
from converters.graph.graph import Graph, label
from converters.graph.stated import NOTHING, Stated
from edgekit.errors import ModelFormatError, UnsupportedOpError

CUSTOM_ADVICE = {
    "com.microsoft": OPTIMIZED_ADVICE,
    "com.microsoft.nchwc": OPTIMIZED_ADVICE,
    "com.ms.internal.nhwc": OPTIMIZED_ADVICE,
    classical.DOMAIN: classical.ADVICE,
}
TEXT_ADVICE = {
    "input": "Export the model from the first numbers on, and make them before the model: for word pieces, the step "
    "word-pieces does it (docs/preprocess.md).",
    "output": "Cut the model before it with --cut OUTPUT[,OUTPUT], and look the text up in the application.",
}


def load_onnx(path: Path, stated: Stated = NOTHING) -> Graph:
    """Read an .onnx file, and its external data file beside it if it has one.

    Raises:
        ModelFormatError: The file is not ONNX, is truncated or quantized, lacks its external data, draws random
            numbers, or has free axes besides the batch whose sizes `stated` does not give.
        UnsupportedOpError: A node's domain is not ONNX's own.
        SettingsError: `stated` does not fit the model.
    """
    return canonical(source_model(path, stated.cut), str(path), stated)


def canonical(model: onnx.ModelProto, source: str, stated: Stated = NOTHING) -> Graph:
    """Convert a parsed model to the canonical form.

    Args:
        model: The parsed model.
        source: Its path, for messages.
        stated: What the user stated of its inputs.

    Raises:
        ModelFormatError, UnsupportedOpError, SettingsError: As `load_onnx`.
    """
    model = inlined(repaired(model), source)
    _require_tensors_of_numbers(model, source)
    refuse_quantized(model, source)
    dtypes = dtypes_of(model)
    model = all_float32(model, source)
    model = classical.rewrite_classical(rewrite_contrib(model, source))
    _refuse_custom(model)
    require_known_operators(model)
    model = with_masked_writes(model)
    model, settled = settle(model, stated, source)
    model = fold_branches(model, source)
    require_inference(model, source)
    model = at_opset(model, source)
    require_known_operators(model)
    model = correct_shapes(model, source)
    model = with_tensors(model, source)
    if tail := tail_of(model, known_shapes(model, source)):
        raise refuse_tail(tail, source)
    _check(model, source)
    require_finite_weights(model, source)
    require_repeatable(model, source)
    graph = canonical_graph(model, settled, source, dtypes)
    name_nodes(graph.model)  # this graph was made just now, and nobody else holds it
    return graph


def _require_tensors_of_numbers(model: onnx.ModelProto, source: str) -> None:
    for side, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in ("tensor_type", None):
                raise ModelFormatError(
                    f"{source}: {side} {value.name} is no tensor but a {kind.removesuffix('_type').replace('_', ' ')}",
                    advice="Export the model with tensors as inputs and outputs, or cut it with --cut OUTPUT[,OUTPUT].",
                )
            if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
                raise ModelFormatError(
                    f"{source}: {side} {value.name} holds texts, and edgekit converts models of numbers",
                    advice=TEXT_ADVICE[side],
                )


def _refuse_custom(model: onnx.ModelProto) -> None:
    for node in all_nodes(model.graph):
        if node.domain:
            raise UnsupportedOpError(
                f"{node.domain}::{node.op_type}",
                label(node),
                backend="any target: it is a custom operator",
                advice=CUSTOM_ADVICE.get(node.domain, "Export the model with standard ONNX operators only."),
            )


def _check(model: onnx.ModelProto, source: str) -> None:
    try:
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        if "op_type:If" in str(error):
            raise branch_refusal(model) from error
        raise ModelFormatError(
            f"{source} is not a valid ONNX model{place_of(error)} ({SHOWN})",
            advice="Export the model again; onnx.checker.check_model(path, full_check=True) shows the same fault.",
            foreign_text=one_line(error),
        ) from error
