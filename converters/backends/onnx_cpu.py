"""ONNX artifacts for ONNX Runtime on CPUs, and float ones for servers."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import helper

from converters.backends.context import ConversionContext
from converters.backends.contract import Artifact
from converters.backends.layers import Layer, layers_of
from converters.backends.onnx_common import artifact_of, dynamic, named, qdq
from converters.backends.onnx_pads import unmerged_pads
from converters.backends.onnx_weights import integer_tables, integer_weights
from converters.calibration.joins import QUANTIZED_LAYERS, Ranges, apart
from converters.calibration.masks import masking_nodes
from converters.graph.graph import Graph, label
from edgekit.bundle.recipe import DYNAMIC, STATIC, WEIGHTS, WHOLE, Recipe
from edgekit.errors import ConversionError

QUANTIZED_OPERATORS = [
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
FLOAT_RESULTS = ["Gemm", "MatMul"]  # kernels that give float sums to float readers; others read them in 8 bits
DYNAMIC_OPERATORS = ["Gemm", "LSTM", "MatMul"]  # operators with kernels that quantize their inputs at run time


class OnnxCpuBackend:
    """Builds .onnx artifacts: float32, QDQ int8 (S8S8), dynamic int8 of dense and recurrent models, integer weights.

    Layers with 4-bit weights always compute in float. There is no float16, because CPU kernels would cast to float and
    back at every node.

    Args:
        context: The context of the conversion.
        free_batch: Keep the batch axis free, for servers that batch requests.
    """

    name = "ONNX Runtime (CPU)"
    precisions: tuple[str, ...] = ("float32", STATIC, DYNAMIC, WEIGHTS)
    lowers = False

    def __init__(self, context: ConversionContext, *, free_batch: bool = False) -> None:
        self._context = context
        self._graph = context.graph if free_batch else context.fixed

    @property
    def graph(self) -> Graph:
        """The graph of the artifacts. See `Backend.graph`."""
        return self._graph

    def layers(self, base: Recipe = WHOLE) -> tuple[Layer, ...]:
        """Layers that a recipe may name. See `Backend.layers`."""
        return layers_of(self._context.base_graph(self._graph, base))

    def build(self, recipe: Recipe) -> Artifact:
        """Make the .onnx of `recipe`. Raises as `Backend.build`."""
        if recipe.precision not in self.precisions:
            raise ConversionError(f"{self.name} supports {', '.join(self.precisions)}, not {recipe.precision}")
        graph = named(unmerged_pads(self._context.prepared(recipe, self._graph)))
        if not recipe.quantized:
            return artifact_of(self._graph, graph.model, recipe)
        graph = integer_tables(graph)
        packed = integer_weights(graph, recipe.int4_layers, bits=4)
        excluded = {*recipe.float_layers, *recipe.int4_layers}
        if recipe.precision == STATIC:
            return self._static(graph, packed, recipe, excluded)
        if recipe.precision == WEIGHTS:
            rest = [layer.name for layer in layers_of(graph) if layer.name not in excluded]
            model = integer_weights(packed, rest, bits=8, per_channel=recipe.per_channel).model
        else:
            _require_dense(graph)
            model = dynamic(packed, recipe, excluded=excluded, operators=DYNAMIC_OPERATORS, folder=self._context.folder)
        return artifact_of(self._graph, model, recipe)

    def _static(self, graph: Graph, packed: Graph, recipe: Recipe, excluded: set[str]) -> Artifact:
        """`packed` (`graph` with its 4-bit weights as integers) in QDQ form; the layers `excluded` stay float."""
        calibration = self._context.calibration_of(recipe, self._graph)
        joins = apart(graph, calibration.ranges())
        packed, ranges = with_copies(packed, joins, calibration.ranges(recipe.ranges))
        excluded = excluded | unfit(graph) | joins | masking_nodes(graph)
        model = qdq(
            packed,
            ranges,
            recipe,
            excluded=excluded,
            operators=QUANTIZED_OPERATORS,
            options={"OpTypesToExcludeOutputQuantization": FLOAT_RESULTS},
        )
        return artifact_of(self._graph, model, recipe, calibration=self._context.calibration_bytes(recipe, self._graph))


def unfit(graph: Graph) -> set[str]:
    """Labels of nodes that must stay float in a QDQ graph.

    Operators that scale and shift by constants (parts of a layer normalization or Gelu) lose precision in 8 bits and
    get no faster, except the bias after a MatMul. The same holds for variances: squares, and sums that go into roots;
    and for sums and products that only float operators read, such as residuals before a layer normalization.
    """
    makers = {name: node for node in graph.nodes for name in node.output}
    results = {spec.name for spec in graph.outputs}
    labels: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op_type not in ("Add", "Mul"):
            continue
        constants = [name for name in node.input if name in graph.constants]
        producers = [makers[name].op_type for name in node.input if name in makers and name not in constants]
        bias = node.op_type == "Add" and producers == ["MatMul"]
        square = len(set(node.input)) == 1
        readers = graph.consumers(node.output[0])
        rooted = any(reader.op_type in ("Sqrt", "Pow") for reader in readers)
        quantized = [one for one in readers if one.op_type in QUANTIZED_OPERATORS and label(one) not in labels]
        ends = not quantized and node.output[0] not in results
        if (constants and not bias) or square or rooted or ends:
            labels.add(label(node))
    return labels


def with_copies(graph: Graph, float_nodes: Collection[str], ranges: Ranges) -> tuple[Graph, Ranges]:
    """Copy the outputs of `float_nodes` (labels) for the layers that read them. Returns the graph and all ranges.

    The quantizer rounds a tensor for all of its readers as soon as one reader is quantized. With the copy, the other
    readers still get float values. ONNX Runtime removes the copy when it loads the model.
    """
    made = {name for node in graph.nodes if label(node) in float_nodes for name in node.output}
    layers = [node for node in graph.nodes if node.op_type in QUANTIZED_LAYERS]
    read = sorted(made.intersection(name for node in layers for name in node.input))
    if not read:
        return graph, ranges
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in read and node.op_type in QUANTIZED_LAYERS:
                node.input[index] = f"{name}.copy"
        nodes.append(node)
        nodes += [helper.make_node("Identity", [n], [f"{n}.copy"], name=f"{n}.copy") for n in node.output if n in read]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return Graph(model), {**ranges, **{f"{name}.copy": ranges[name] for name in read}}


def _require_dense(graph: Graph) -> None:
    """Check that dynamic kernels would do most of the work.

    Raises:
        ConversionError: no layer has such a kernel, or most work is in convolutions, whose dynamic kernel is slower
            than float.
    """
    macs = graph.macs
    work = {"Conv": 0, "dense": 0}
    for layer in layers_of(graph):
        work["Conv" if "Conv" in layer.operator else "dense"] += max(layer.macs, layer.weights)
    if not any(layer.operator in DYNAMIC_OPERATORS for layer in layers_of(graph)) or work["Conv"] > work["dense"]:
        share = work["Conv"] / max(sum(work.values()), 1)
        raise ConversionError(
            f"ONNX Runtime has dynamic int8 kernels for dense and LSTM layers only, and {share:.0%} of "
            f"{sum(macs.values())} multiply-adds of this model are in convolutions",
            advice="Use int8 or int8-weights; LiteRT has dynamic convolutions.",
        )
