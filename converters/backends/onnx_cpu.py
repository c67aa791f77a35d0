"""ONNX artifacts for ONNX Runtime on CPUs, and float ones for servers."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import helper

from converters.backends.context import ConversionContext
from converters.backends.contract import Artifact
from converters.backends.layers import Layer, layers_of
from converters.backends.onnx_common import artifact_of, dynamic, named, qdq
from converters.backends.onnx_weights import integer_weights
from converters.calibration.joins import QUANTIZED_LAYERS, Ranges, apart
from converters.graph.graph import Graph, label
from edgekit.bundle.recipe import DYNAMIC, STATIC, WEIGHTS, Recipe
from edgekit.errors import ConversionError

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
DYNAMIC_OPERATORS = ["Gemm", "LSTM", "MatMul"]  # those with a kernel that quantizes inputs as they come


class OnnxCpuBackend:
    """Builds .onnx artifacts: float32, QDQ int8 (S8S8), dynamic int8 of dense and recurrent models, integer weights.

    Layers of 4 bits compute in float whatever the precision of the others. There is no float16 here: CPU kernels would
    cast to float and back at every node.

    Args:
        context: What the backends of one conversion share.
        free_batch: Keep the batch axis free, for servers that join requests.
    """

    name = "ONNX Runtime (CPU)"
    precisions: tuple[str, ...] = ("float32", STATIC, DYNAMIC, WEIGHTS)
    lowers = False

    def __init__(self, context: ConversionContext, *, free_batch: bool = False) -> None:
        self._context = context
        self._graph = context.graph if free_batch else context.fixed

    @property
    def graph(self) -> Graph:
        """What artifacts are made of. See Backend.graph."""
        return self._graph

    def layers(self, *, pruned: bool = False) -> tuple[Layer, ...]:
        """What a recipe may name. See Backend.layers."""
        return layers_of(self._context.base_graph(self._graph, pruned=pruned))

    def build(self, recipe: Recipe) -> Artifact:
        """Make the .onnx that `recipe` asks for. Raises as Backend.build."""
        if recipe.precision not in self.precisions:
            raise ConversionError(f"{self.name} makes {', '.join(self.precisions)}, not {recipe.precision}")
        graph = named(self._context.prepared(recipe, self._graph))
        if not recipe.quantized:
            return artifact_of(self._graph, graph.model)
        lean = integer_weights(graph, recipe.int4_layers, bits=4)
        alone = {*recipe.float_layers, *recipe.int4_layers}
        if recipe.precision == STATIC:
            return self._static(graph, lean, recipe, alone)
        if recipe.precision == WEIGHTS:
            rest = [layer.name for layer in layers_of(graph) if layer.name not in alone]
            model = integer_weights(lean, rest, bits=8, per_channel=recipe.per_channel).model
        else:
            _require_dense(graph)
            model = dynamic(lean, recipe, excluded=alone, operators=DYNAMIC_OPERATORS, folder=self._context.folder)
        return artifact_of(self._graph, model)

    def _static(self, graph: Graph, lean: Graph, recipe: Recipe, alone: set[str]) -> Artifact:
        """`lean`, which is `graph` with the 4-bit weights that it has, as QDQ; `alone` are layers that stay float."""
        calibration = self._context.calibration_of(recipe, self._graph)
        joins = apart(graph, calibration.ranges())
        lean, ranges = with_copies(lean, joins, calibration.ranges(recipe.ranges))
        excluded = alone | unfit(graph) | joins
        model = qdq(lean, ranges, recipe, excluded=excluded, operators=OPERATORS, options={})
        return artifact_of(self._graph, model, calibration=self._context.calibration_bytes(recipe, self._graph))


def unfit(graph: Graph) -> set[str]:
    """Labels of nodes that must stay float in a QDQ graph.

    What scales and shifts by constants (a layer normalization or Gelu that was taken apart) loses in 8 bits and gains
    nothing, but for the bias behind a MatMul. So do variances: squares, and sums that go into roots.
    """
    makers = {name: node for node in graph.nodes for name in node.output}
    found = set()
    for node in graph.nodes:
        if node.op_type not in ("Add", "Mul"):
            continue
        constants = [name for name in node.input if name in graph.constants]
        behind = [makers[name].op_type for name in node.input if name in makers and name not in constants]
        bias = node.op_type == "Add" and behind == ["MatMul"]
        square = len(set(node.input)) == 1
        rooted = any(reader.op_type in ("Sqrt", "Pow") for reader in graph.consumers(node.output[0]))
        if (constants and not bias) or square or rooted:
            found.add(label(node))
    return found


def with_copies(graph: Graph, kept: Collection[str], ranges: Ranges) -> tuple[Graph, Ranges]:
    """`graph` with a copy of what the nodes `kept` (labels) make for the layers that read it, and ranges with theirs.

    The quantizer rounds a tensor for all of its readers as soon as one is quantized: without the copy, those that
    should get the values as they are would not. ONNX Runtime drops the copy when it loads the model.
    """
    made = {name for node in graph.nodes if label(node) in kept for name in node.output}
    layers = [node for node in graph.nodes if node.op_type in QUANTIZED_LAYERS]
    read = sorted(made.intersection(name for node in layers for name in node.input))
    if not read:
        return graph, ranges
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in read and node.op_type in QUANTIZED_LAYERS:
                node.input[place] = f"{name}.copy"
        nodes.append(node)
        nodes += [helper.make_node("Identity", [n], [f"{n}.copy"], name=f"{n}.copy") for n in node.output if n in read]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return Graph(model), {**ranges, **{f"{name}.copy": ranges[name] for name in read}}


def _require_dense(graph: Graph) -> None:
    """Check that dynamic kernels would do most of the work.

    Raises:
        ConversionError: there is nothing for them, or convolutions prevail, whose dynamic kernel is slower than float.
    """
    macs = graph.macs
    work = {"Conv": 0, "dense": 0}
    for layer in layers_of(graph):
        work["Conv" if "Conv" in layer.operator else "dense"] += max(layer.macs, layer.weights)
    if not any(layer.operator in DYNAMIC_OPERATORS for layer in layers_of(graph)) or work["Conv"] > work["dense"]:
        share = work["Conv"] / max(sum(work.values()), 1)
        raise ConversionError(
            f"ONNX Runtime quantizes inputs as they come in dense and LSTM layers only, and here {share:.0%} of "
            f"{sum(macs.values())} multiply-adds are in convolutions",
            advice="Use int8 or int8-weights; LiteRT has dynamic convolutions.",
        )
