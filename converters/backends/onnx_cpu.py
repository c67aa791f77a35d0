"""ONNX artifacts for ONNX Runtime on CPUs, and float ones for servers."""

from __future__ import annotations

from converters.backends.contract import Artifact, Workbench
from converters.backends.layers import Layer, layers_of, without_four_bits
from converters.backends.onnx_common import artifact_of, qdq
from edgekit.errors import ConversionError
from edgekit.recipe import Recipe

OPERATORS = [
    "Add",
    "AveragePool",
    "Concat",
    "Conv",
    "Gemm",
    "GlobalAveragePool",
    "MatMul",
    "MaxPool",
    "Mul",
    "Relu",
    "Reshape",
    "Squeeze",
    "Transpose",
]


class OnnxCpuBackend:
    """Builds .onnx artifacts: float32, or QDQ int8 (S8S8).

    There is no float16 here: CPU kernels would cast to float and back at every node.

    Args:
        bench: What the backends of one conversion share.
        free_batch: Keep the batch axis free, for servers that join requests.
    """

    name = "ONNX Runtime (CPU)"
    precisions = ("float32", "int8")

    def __init__(self, bench: Workbench, *, free_batch: bool = False) -> None:
        self._bench = bench
        self._graph = bench.graph if free_batch else bench.fixed

    def layers(self) -> tuple[Layer, ...]:
        """What a recipe may name. See Backend.layers."""
        return without_four_bits(layers_of(self._graph))

    def build(self, recipe: Recipe) -> Artifact:
        """Make the .onnx that `recipe` asks for. Raises as Backend.build."""
        if recipe.precision == "float32":
            return artifact_of(self._graph, self._graph.model)
        if recipe.precision == "int8":
            model = qdq(self._graph, self._bench.calibration, recipe, operators=OPERATORS, options={})
            return artifact_of(self._graph, model)
        raise ConversionError(f"{self.name} makes {' and '.join(self.precisions)}, not {recipe.precision}")
