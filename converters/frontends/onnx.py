"""Read ONNX files as canonical graphs: checked, one standard operator set, first axis the batch, named ``batch``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import checker, external_data_helper, inliner, version_converter
from onnx.reference import ReferenceEvaluator

from converters.frontends.sniff import KNOWN
from converters.graph.graph import BATCH, Graph, label
from edgekit.errors import ConversionError, ModelFormatError, RuntimeLoadError, UnsupportedOpError
from edgekit.tensors import Array

MIN_OPSET, CANONICAL_OPSET, MAX_OPSET = 11, 17, 23
MAX_IR = 11  # of the file format: the oldest supported ONNX Runtime refuses newer ones
TRAINED_OPERATORS = ("BatchNormalization", "Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
STANDARD = ("", "ai.onnx")


def load_onnx(path: Path) -> Graph:
    """Read an .onnx file, and its external data file beside it if it has one.

    Raises:
        ModelFormatError: The file is not ONNX, is truncated or too old, lacks its external data, or has free axes.
        UnsupportedOpError: A node's domain is not ONNX's own.
    """
    return canonical(_read(path), str(path))


def onnx_answers(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the file itself on `inputs` (N, ...) and return its outputs.

    ONNX Runtime runs it, or ONNX's reference evaluator if the operator set is too new for ONNX Runtime.

    Raises:
        ModelFormatError: As `load_onnx`.
        ConversionError: Neither can run the file.
    """
    model = _read(path)
    model.ir_version = min(model.ir_version, MAX_IR)
    graph = Graph(model)
    try:
        return graph.run(inputs)
    except RuntimeLoadError as refused:
        try:
            reference = ReferenceEvaluator(model)
            names = [spec.name for spec in graph.outputs]
            parts = [reference.run(names, chunk) for chunk in graph.chunks(inputs)]
        except Exception as error:  # the reference raises any numpy error
            raise ConversionError(
                f"{path} cannot be run by ONNX Runtime: {refused}; nor by ONNX's reference: {error}"
            ) from error
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def _read(path: Path) -> onnx.ModelProto:
    """The parsed file with its weights. Raises as `load_onnx`."""
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


def canonical(model: onnx.ModelProto, source: str) -> Graph:
    """Convert a parsed model to the canonical form.

    Raises:
        ModelFormatError, UnsupportedOpError: As `load_onnx`.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    for node in _all_nodes(model.graph):
        if node.domain not in STANDARD:
            raise UnsupportedOpError(
                f"{node.domain}::{node.op_type}",
                label(node),
                backend="any target: it is a custom operator",
                advice="Export the model with standard ONNX operators only.",
            )
    model = _at_opset(model, source)
    model.ir_version = min(model.ir_version, MAX_IR)
    _require_known_operators(model)
    try:
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelFormatError(f"{source} is not a valid ONNX model: {error}") from error
    _require_finite_weights(model, source)
    _drop_initializer_inputs(model)
    _name_batch(model, source)
    _name_nodes(model)
    return Graph(model)


def _at_opset(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
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
    _require_known_operators(model)
    try:
        return version_converter.convert_version(model, wanted)
    except (RuntimeError, version_converter.ConvertError) as error:
        raise ModelFormatError(
            f"{source} uses ONNX opset {versions[0]} and cannot be converted to opset {wanted}: {error}",
            advice=f"Export it again with opset {CANONICAL_OPSET}.",
        ) from error


def _require_known_operators(model: onnx.ModelProto) -> None:
    version = model.opset_import[0].version
    for node in _all_nodes(model.graph):
        if not onnx.defs.has(node.op_type, version, ""):
            raise UnsupportedOpError(
                node.op_type, label(node), backend=f"any target: ONNX opset {version} has no such operator"
            )


def _require_finite_weights(model: onnx.ModelProto, source: str) -> None:
    """Refuse NaN in constants, and infinity in trained weights; infinity is valid only in masks."""
    trained = {name for node in _all_nodes(model.graph) if node.op_type in TRAINED_OPERATORS for name in node.input}
    for name, value in Graph(model).constants.items():
        if value.dtype.kind != "f" or np.isfinite(value).all():
            continue
        undefined, infinite = int(np.isnan(value).sum()), int(np.isinf(value).sum())
        if undefined or name in trained:
            values = f"{undefined} undefined values (NaN)" if undefined else f"{infinite} infinite values"
            raise ModelFormatError(
                f"{source}: weight {name} contains {values}",
                advice="The training diverged, or the file is damaged. Export the model from a good checkpoint.",
            )


def _drop_initializer_inputs(model: onnx.ModelProto) -> None:
    """Remove weights from the graph's inputs, where old exporters list them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _name_batch(model: onnx.ModelProto, source: str) -> None:
    fixed = []
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if not dims:
            raise ModelFormatError(f"{source}: {value.name} has no axes, expected the batch as its first")
        fixed.append(dims[0].HasField("dim_value"))
        if fixed[-1] and dims[0].dim_value != 1:
            raise ModelFormatError(
                f"{source}: {value.name} has a first axis of {dims[0].dim_value}, expected a free batch or 1",
                advice="Export the model with a free (dynamic) batch axis.",
            )
        for axis, dim in enumerate(dims):
            if axis and not dim.HasField("dim_value"):
                raise ModelFormatError(
                    f"{source}: {value.name} has a free axis {axis} ({dim.dim_param or 'unnamed'}), "
                    "expected only the batch to be free",
                    advice="Export the model with fixed sizes for every axis but the first.",
                )
    if not all(fixed):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = BATCH


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name, for quantizers, recipes and messages; exporters may omit or repeat names."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def _not_onnx(path: Path, why: str) -> ModelFormatError:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
    return ModelFormatError(
        f"{path} ({size} bytes, begins with {head!r}) is not a model that edgekit can read, or is truncated: "
        f"read as ONNX, {why}",
        advice=f"{KNOWN} Copy or export the file again.",
    )
