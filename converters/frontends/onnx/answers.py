"""Runs an .onnx file as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx.reference import ReferenceEvaluator

from converters.frontends.onnx.opset import MAX_IR
from converters.frontends.onnx.read import read_model
from converters.graph.graph import Graph
from edgekit.errors import ConversionError, RuntimeLoadError
from edgekit.tensors import Array


def onnx_answers(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the file itself on `inputs` (N, ...) and return its outputs.

    ONNX Runtime runs it, or ONNX's reference evaluator if the operator set is too new for ONNX Runtime.

    Raises:
        ModelFormatError: As `load_onnx`.
        ConversionError: Neither can run the file.
    """
    model = read_model(path)
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
