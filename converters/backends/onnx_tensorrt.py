"""ONNX artifacts for Jetson: ONNX Runtime with TensorRT and CUDA.

TensorRT takes explicit quantization only: zero points of 0, activations per tensor, weights per channel, and biases in
float. Element types in the file decide the precision, so float16 is written into it.
"""

from __future__ import annotations

from converters.backends.contract import Artifact, Workbench
from converters.backends.layers import Layer, layers_of, without_four_bits
from converters.backends.onnx_common import artifact_of, half, named, qdq
from edgekit.errors import ConversionError
from edgekit.recipe import Recipe

OPERATORS = ["Add", "Conv", "Gemm", "MatMul"]


class OnnxTensorRTBackend:
    """Builds .onnx artifacts with a batch of 1: float32, float16, or symmetric QDQ int8."""

    name = "ONNX Runtime (TensorRT)"
    precisions = ("float32", "float16", "int8")

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._graph = bench.fixed

    def layers(self) -> tuple[Layer, ...]:
        """What a recipe may name. See Backend.layers."""
        return without_four_bits(layers_of(self._graph))

    def build(self, recipe: Recipe) -> Artifact:
        """Make the .onnx that `recipe` asks for. Raises as Backend.build."""
        if recipe.precision == "float32":
            return artifact_of(self._graph, self._graph.model)
        if recipe.precision == "float16":
            return artifact_of(self._graph, half(self._graph))
        if not recipe.symmetric:
            raise ConversionError(
                "TensorRT takes int8 activations with a zero point of 0 only",
                advice="Set symmetric = true in the recipe.",
            )
        graph = named(self._bench.prepared(recipe, self._graph))
        model = qdq(
            graph,
            self._bench.calibration_of(recipe, self._graph).ranges(recipe.ranges),
            recipe,
            excluded=recipe.float_layers,
            operators=OPERATORS,
            options={"QuantizeBias": False},
        )
        return artifact_of(self._graph, model)
