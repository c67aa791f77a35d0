"""Runs an .onnx file as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from converters.foreign_text import SHOWN, plain_text
from converters.frontends.interface.protobuf import copy_of, dims_of, set_dims
from converters.frontends.interface.source_rows import run_samples
from converters.frontends.interface.trial import opened
from converters.frontends.onnx.floats import OTHER_FLOATS, all_float32
from converters.frontends.onnx.foreign import one_line
from converters.frontends.onnx.source import source_model
from converters.graph.graph import Graph
from edgekit.errors import ConversionError, RuntimeLoadError
from edgekit.tensors import Array

# ONNX Runtime refuses to divide whole numbers by 0; NumPy, and so ONNX's reference, answers with a 0.
_DIVIDED_BY_ZERO = re.compile(r"integer (?:division|modulo) by zero", re.IGNORECASE)

_OPERATOR = re.compile(r"operator \w+ \(layer '[^']*'\)")  # as the runtime's adapter names it


def onnx_answers(
    path: Path, inputs: Mapping[str, Array], *, graph: Graph | None = None, cut: Sequence[str] = ()
) -> dict[str, Array]:
    """Run the file itself and return its outputs; floats of other types as float32.

    ONNX Runtime runs it, or ONNX's reference evaluator where ONNX Runtime cannot: an operator set that is too new, or
    floats without kernels. Where neither can, and the file has floats other than float32, it runs in float32.

    Args:
        path: The file.
        inputs: Samples (N, ...) of the graph's inputs.
        graph: The canonical graph of the file; None where the file itself has the batch first everywhere.
        cut: Where the file is cut, as `source_model` takes it.

    Raises:
        ModelFormatError: As `load_onnx`.
        ConversionError: Neither can run the file, or it divides whole numbers by 0.
    """
    model = source_model(path, cut)
    try:
        answers = _runtime_answers(model, graph, inputs)
    except RuntimeLoadError as refused:
        if _DIVIDED_BY_ZERO.search(str(refused)):
            raise ConversionError(
                f"the model divides whole numbers by 0 for some of these samples{_at(refused)}",
                foreign_text=one_line(refused),
                advice="Give --data whose divisors are not 0, or let the model bound the divisor (Max with 1).",
            ) from refused
        try:
            answers = _reference_answers(model, graph, inputs)
        except Exception as error:  # the reference raises any numpy error
            wide = all_float32(model, str(path))
            if wide is model:
                raise ConversionError(
                    f"neither ONNX Runtime nor ONNX's reference can run {path}{_at(refused)} ({SHOWN})",
                    foreign_text=f"{one_line(refused)}\n{plain_text(error) or type(error).__name__}",
                    advice="Run the file with ONNX Runtime first, and export the model again if it fails there too.",
                ) from error
            answers = _runtime_answers(wide, graph, inputs)
    kinds = {np.dtype(helper.tensor_dtype_to_np_dtype(kind)) for kind in OTHER_FLOATS}
    return {name: value.astype(np.float32) if value.dtype in kinds else value for name, value in answers.items()}


def _at(refused: RuntimeLoadError) -> str:
    """The operator and layer that ONNX Runtime's error names, with a colon in front; empty where it names none."""
    found = _OPERATOR.search(str(refused))
    return f": {found[0]}" if found else ""


def _in_types_of(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """`inputs` in the types of the model's inputs."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    wanted = {name: helper.tensor_dtype_to_np_dtype(kind) for name, kind in kinds.items()}
    return {name: value.astype(wanted[name], copy=False) for name, value in inputs.items()}


def _as_stated(model: onnx.ModelProto, graph: Graph | None) -> onnx.ModelProto:
    """The model with free axes where the user stated them: all of an input without axes, and a batch that was fixed."""
    made = copy_of(model)
    for value in made.graph.input:
        one = next((one for one in graph.interface.inputs if one.spec.name == value.name), None) if graph else None
        if one is None:
            continue
        if not value.type.tensor_type.HasField("shape"):
            set_dims(value, (None,) * len(one.spec.shape))
        elif (axis := one.spec.batch_axis) is not None:
            dims = dims_of(value)
            if isinstance(dims[axis], int) and dims[axis] != 1:
                set_dims(value, (*dims[:axis], None, *dims[axis + 1 :]))
    return made


def _runtime_answers(model: onnx.ModelProto, graph: Graph | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
    with opened(_as_stated(model, graph)) as runtime:
        return run_samples(graph or Graph(model), inputs, lambda one: runtime.run(_in_types_of(model, one)))


def _reference_answers(model: onnx.ModelProto, graph: Graph | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
    reference = ReferenceEvaluator(model)
    names = [value.name for value in model.graph.output]

    def run(one: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, reference.run(names, _in_types_of(model, one)), strict=True))

    return run_samples(graph or Graph(model), inputs, run)
