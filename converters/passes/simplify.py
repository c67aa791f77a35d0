"""Fold what is constant and drop what does nothing, by onnxslim."""

from __future__ import annotations

import onnx
import onnxslim

from converters.graph.graph import Graph
from edgekit.errors import ConversionError


class Simplify:
    """Constant folding, dead nodes, identities, and multiply-adds that belong into a convolution."""

    name = "simplify"

    def applies(self, graph: Graph) -> bool:
        """Always worth a try."""
        return True

    def run(self, graph: Graph) -> Graph:
        """The smaller graph.

        Raises:
            ConversionError: onnxslim failed.
        """
        copy = onnx.ModelProto()
        copy.CopyFrom(graph.model)
        try:
            slim = onnxslim.slim(copy)
        except Exception as error:  # onnxslim raises bare Exceptions; the step is named and nothing goes on
            raise ConversionError(f"pass {self.name} failed: {type(error).__name__}: {error}") from error
        del slim.graph.value_info[:]  # shapes are inferred where they are asked for; in a file they are dead weight
        return Graph(slim)

    def holds(self, graph: Graph) -> bool:
        """No node remains that only hands its input on."""
        results = {value.name for value in graph.model.graph.output}
        return not any(node.op_type == "Identity" and node.output[0] not in results for node in graph.nodes)
