"""Fold constants and drop nodes without effect, with onnxslim."""

from __future__ import annotations

import onnx
import onnxslim

from converters.graph.graph import Graph
from edgekit.errors import ConversionError


class Simplify:
    """Folds constants, drops dead nodes and identities, and merges multiply-adds into convolutions."""

    name = "simplify"

    def applies(self, graph: Graph) -> bool:
        """Always True."""
        return True

    def run(self, graph: Graph) -> Graph:
        """The smaller graph.

        Raises:
            ConversionError: onnxslim failed; the message names its error.
        """
        copy = onnx.ModelProto()
        copy.CopyFrom(graph.model)
        try:
            slim = onnxslim.slim(copy)
        except Exception as error:  # onnxslim raises bare Exceptions; the conversion stops
            raise ConversionError(f"pass {self.name} failed: {type(error).__name__}: {error}") from error
        del slim.graph.value_info[:]  # shapes are inferred on demand; in a file they only take space
        return Graph(slim)

    def holds(self, graph: Graph) -> bool:
        """No Identity remains, except those that make an output."""
        results = {value.name for value in graph.model.graph.output}
        return not any(node.op_type == "Identity" and node.output[0] not in results for node in graph.nodes)
