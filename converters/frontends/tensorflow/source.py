"""Keras and SavedModel as sources: by ONNX, or where an operator has no ONNX form, by TensorFlow's own converter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from converters.framework_process import TensorFlowProcess
from converters.frontends.onnx import canonical
from converters.frontends.onnx.floats import precision_of
from converters.frontends.opaque import opaque_graph
from converters.frontends.row_sizes import rows_of
from converters.frontends.source import Source, answers_of, direct_of
from converters.frontends.tensorflow.source_file import SourceFile
from converters.graph.graph import Graph
from converters.graph.stated import Stated
from converters.lowering import Lowered
from edgekit.errors import ConversionError, UnsupportedOpError
from edgekit.tensors import Array


def load_tensorflow(file: SourceFile, digest: str, process: TensorFlowProcess, stated: Stated) -> Source:
    """Load a Keras model or a SavedModel.

    Raises:
        As `load_model`. UnsupportedOpError: An operator has neither an ONNX form nor one in LiteRT.
    """
    try:
        model = onnx.load_model_from_string(process.call("export_source", source=file))
        graph, precision = canonical(model, file.path, stated), precision_of(model)
    except UnsupportedOpError as error:
        graph, precision = _opaque(file, process, stated, error), "float32"

    opaque, sizes = graph.opaque, {spec.name: [1, *spec.shape[1:]] for spec in graph.inputs}

    def direct(inputs: Sequence[str], outputs: Sequence[str]) -> Lowered:
        if opaque is not None:
            return Lowered(opaque.data, [() for _ in inputs], [() for _ in outputs])
        shapes = {name: sizes[name] for name in inputs}
        lowered: Lowered = process.call("direct", source=file, shapes=shapes, outputs=list(outputs))
        return lowered

    def answers(inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs: dict[str, Array] = process.call("answers", source=file, inputs=dict(inputs))
        return outputs

    own = answers_of(graph, answers), direct_of(graph, direct)
    return Source(Path(file.path), file.format, digest, graph, *own, precision=precision)


def _opaque(file: SourceFile, process: TensorFlowProcess, stated: Stated, why: UnsupportedOpError) -> Graph:
    """The graph that holds the file of TensorFlow's own converter.

    Raises:
        ModelFormatError: A free axis has no size.
        UnsupportedOpError: LiteRT lacks an operator too.
    """
    inputs, outputs = process.call("described", source=file)
    shapes, notes = rows_of(file.path, inputs, stated, dict.fromkeys(inputs, True), maps=True)
    try:
        lowered: Lowered = process.call("direct", source=file, shapes=shapes, outputs=outputs)
    except ConversionError as error:
        raise UnsupportedOpError(
            why.op,
            why.layer,
            backend=f"any target: it has no ONNX form, and by the direct route {error}",
            advice="Replace the layer, or save the model from the next layer on and compute this one before the model.",
        ) from error
    return opaque_graph(lowered.data, list(shapes), outputs, why, file.path, stated).with_notes(notes)
