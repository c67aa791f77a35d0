"""Corrects declared shapes and types from inference, as ONNX Runtime does when it loads a file."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import shape_inference

from converters.foreign_text import SHOWN
from converters.frontends.onnx.foreign import one_line, place_of
from edgekit.errors import ModelFormatError


def correct_shapes(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """A copy without stored shapes of inner tensors, and with shapes of outputs that inference agrees with.

    An axis that inference cannot settle keeps its declared size.

    Raises:
        ModelFormatError: A node does not accept its inputs.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    inferred = {value.name: value for value in inferred_shapes(bare, source).graph.output}
    for value, declared in zip(bare.graph.output, model.graph.output, strict=True):
        value.type.CopyFrom(_merged(declared.type, inferred[value.name].type))
    return bare


def inferred_shapes(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """A copy with the shapes that ONNX infers, also through values such as the result of Shape.

    Raises:
        ModelFormatError: A node does not accept its inputs.
    """
    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelFormatError(
            f"{source} is not a valid ONNX model{place_of(error)} ({SHOWN})",
            advice="Export the model again; onnx.checker.check_model(path, full_check=True) shows the same fault.",
            foreign_text=one_line(error),
        ) from error


def known_shapes(model: onnx.ModelProto, source: str) -> dict[str, tuple[int | None, ...]]:
    """The shape of each tensor of known rank, by name; None for a free or unknown size.

    Raises:
        ModelFormatError: A node does not accept its inputs.
    """
    graph = inferred_shapes(model, source).graph
    return {
        value.name: tuple(
            int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _merged(declared: Any, inferred: Any) -> Any:
    """The declared type with what inference knows better."""
    if not inferred.HasField("tensor_type") or not inferred.tensor_type.elem_type:
        return declared
    merged = onnx.TypeProto()
    merged.CopyFrom(inferred)
    known, stated = merged.tensor_type.shape.dim, declared.tensor_type.shape.dim
    if not merged.tensor_type.HasField("shape"):
        merged.tensor_type.shape.CopyFrom(declared.tensor_type.shape) if declared.tensor_type.HasField(
            "shape"
        ) else None
    elif len(known) == len(stated):
        for axis, dim in enumerate(known):
            if not dim.HasField("dim_value") and (stated[axis].HasField("dim_value") or not dim.dim_param):
                dim.CopyFrom(stated[axis])
    return merged
