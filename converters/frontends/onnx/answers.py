"""Runs an .onnx file as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from converters.frontends.onnx.floats import OTHER_FLOATS, all_float32
from converters.frontends.onnx.foreign import one_line
from converters.frontends.onnx.source import source_model
from converters.graph.graph import Graph
from edgekit.errors import ConversionError, RuntimeLoadError
from edgekit.tensors import Array


def onnx_answers(path: Path, inputs: Mapping[str, Array], *, cut: Sequence[str] = ()) -> dict[str, Array]:
    """Run the file itself on `inputs` (N, ...) and return its outputs; floats of other types as float32.

    ONNX Runtime runs it, or ONNX's reference evaluator where ONNX Runtime cannot: an operator set that is too new, or
    floats without kernels. Where neither can, and the file has floats other than float32, it runs in float32.

    Args:
        path: The file.
        inputs: Inputs by name.
        cut: Where the file is cut, as `source_model` takes it.

    Raises:
        ModelFormatError: As `load_onnx`.
        ConversionError: Neither can run the file.
    """
    model = source_model(path, cut)
    given = _in_types_of(model, inputs)
    try:
        answers = Graph(model).run(given)
    except RuntimeLoadError as refused:
        try:
            answers = _reference_answers(model, given)
        except Exception as error:  # the reference raises any numpy error
            wide = all_float32(model, str(path))
            if wide is model:
                raise ConversionError(
                    f"{path} cannot be run by ONNX Runtime: {one_line(refused)}; nor by ONNX's reference: "
                    f"{one_line(error)}"
                ) from error
            answers = Graph(wide).run(_in_types_of(wide, inputs))
    kinds = {np.dtype(helper.tensor_dtype_to_np_dtype(kind)) for kind in OTHER_FLOATS}
    return {name: value.astype(np.float32) if value.dtype in kinds else value for name, value in answers.items()}


def _in_types_of(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """`inputs` with floats in the types of the model's inputs."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    wanted = {name: helper.tensor_dtype_to_np_dtype(kind) for name, kind in kinds.items() if kind in OTHER_FLOATS}
    return {name: value.astype(wanted[name]) if name in wanted else value for name, value in inputs.items()}


def _reference_answers(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    reference = ReferenceEvaluator(model)
    names = [value.name for value in model.graph.output]
    parts = [reference.run(names, chunk) for chunk in Graph(model).chunks(inputs)]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
