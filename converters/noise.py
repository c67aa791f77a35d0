"""Measures the noise of a source model before any conversion, and finds the layer where it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper

from converters.data.samples import Samples
from converters.frontends import Source
from converters.graph.float64 import answers_in_float64, with_exact_transforms
from converters.graph.graph import Graph, label
from converters.quality import parity
from converters.quality.noise import OutputNoise, differences, measure_noise, moved
from edgekit.bundle.spread import largest_deviations, spreads
from edgekit.errors import EdgekitError
from edgekit.runtimes.onnx import OnnxRuntime
from edgekit.tensors import Array, DType

ROWS = 16  # rows of the measurement
FLOAT64_ROWS = 2
FLOAT64_MACS = 20_000_000  # most multiply-adds of a row that are run in float64
FLOAT64_MULTIPLE = 8.0  # most that float64 may add to the noise that the source itself shows
TRACED_ROWS = 4
TRACED_BYTES = 256 * 1024**2  # most bytes of intermediate values that are kept to find the layer
SEED = 7
HALF_ROUNDING = 2.0**-11  # largest relative error of rounding to float16


class Noise(msgspec.Struct, frozen=True):
    """The noise of a float model.

    Attributes:
        outputs: The noise of each output.
        by_output: Noise of each group of columns, by output, for `parity.tolerances`.
        layer: The layer where the noise starts; empty for a model that is well-conditioned.
    """

    outputs: tuple[OutputNoise, ...]
    by_output: dict[str, Array]
    layer: str = ""

    @property
    def ill_conditioned(self) -> bool:
        """True where the noise widens the limit of a parity check, and is more than the rounding of the answers."""
        return any(parity.NOISE_MULTIPLE * output.share > 1.0 for output in self.outputs)

    @property
    def sentence(self) -> str:
        """A sentence for people; empty for a model that is well-conditioned."""
        if not self.ill_conditioned:
            return ""
        worst = max(self.outputs, key=lambda output: output.share)
        start = f" It starts at layer {self.layer}." if self.layer else ""
        return (
            f"The model is ill-conditioned in float32: its own answers vary by {worst.noise:.3g} in output "
            f"{worst.name} with the batch size and with the last bit of its inputs.{start} "
            f"Parity checks allow {parity.NOISE_MULTIPLE:g} times that."
        )


def noise_of(source: Source, samples: Samples, expected: Mapping[str, Array]) -> Noise:
    """Measure the noise of a source model.

    The source runs in other batch sizes, and with inputs moved by one unit in the last place. Small models run in
    float64 too: that may add to the noise, up to `FLOAT64_MULTIPLE` times of what the source itself shows, because a
    fault in the reading of the model must not count as noise. Fourier transforms alone in float64 may add any amount:
    the reading does not touch them, and ONNX Runtime's float32 kernel for them is rough.

    Args:
        source: The loaded model.
        samples: Inputs; the first rows are used.
        expected: The source's answers to them (N, ...).
    """
    inputs = samples.take(slice(0, ROWS)).inputs
    first = {name: value[:ROWS] for name, value in expected.items()}
    found = measure_noise(source.answers, inputs, first)
    found = _with_transforms(source.graph, inputs, first, _with_float64(source.graph, inputs, first, found))
    outputs = []
    for name, value in first.items():
        spread = spreads(value)
        limits = parity.FLOAT32_RELATIVE * largest_deviations(value, spread)
        limits = np.maximum(limits, parity.NOISE_MULTIPLE * parity.rounding(value, spread))
        share = float((found[name] / np.maximum(limits, parity.SMALLEST_LIMIT)).max(initial=0.0))
        if value.dtype.kind == "f":
            outputs.append(OutputNoise(name, float(found[name].max(initial=0.0)), share))
    noise = Noise(tuple(outputs), _with_rounding(source.graph, first, found))
    if not noise.ill_conditioned:
        return noise
    return msgspec.structs.replace(noise, layer=noisiest_layer(source.graph, inputs))


def noisiest_layer(graph: Graph, inputs: Mapping[str, Array]) -> str:
    """The layer that enlarges relative rounding errors most; empty where the graph is too large to trace.

    Each layer runs alone, on its inputs and on the same inputs with rounding errors of float32 added. Its factor is the
    relative change of its output, in root mean squares, divided by that of its inputs.
    """
    rows = {name: value[: TRACED_ROWS if graph.free_batch else 1] for name, value in inputs.items()}
    traced = _traced(graph)
    if traced is None:
        return ""
    try:
        runtime = OnnxRuntime(traced.SerializeToString(), optimize=False)
        values = {**graph.constants, **rows, **runtime.run(rows)}
        runtime.close()
    except EdgekitError:  # a layer's name is a help, not a result
        return ""
    factors = {label(node): _factor(graph, node, values) for node in graph.nodes}
    best = max(factors, key=lambda name: factors[name], default="")
    return best if best and factors[best] > 1.0 else ""


def _factor(graph: Graph, node: Any, values: Mapping[str, Array]) -> float:
    """The factor by which one layer enlarges relative rounding errors; 0 where it cannot run alone."""
    names = [name for name in dict.fromkeys(node.input) if name]
    if any(name not in values for name in names) or not any(values[name].dtype == np.float32 for name in names):
        return 0.0
    alone = helper.make_graph(
        [node],
        "layer",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape)
            for name in names
        ],
        [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)],
    )
    rng = np.random.default_rng(SEED)
    try:
        opsets = [helper.make_opsetid("", graph.opset)]
        model = helper.make_model(alone, opset_imports=opsets, ir_version=graph.model.ir_version)
        runtime = OnnxRuntime(model.SerializeToString(), optimize=False)
        own = {name: values[name] for name in names}
        before = runtime.run(own)[node.output[0]]
        after = runtime.run({name: moved(value, rng) for name, value in own.items()})[node.output[0]]
        runtime.close()
    except EdgekitError:  # for example an input that must be a constant
        return 0.0
    return _relative(before, after) / float(np.finfo(np.float32).eps)


def _with_float64(
    graph: Graph, inputs: Mapping[str, Array], answers: Mapping[str, Array], noise: dict[str, Array]
) -> dict[str, Array]:
    """The noise, with the differences between float32 and float64 added where these can be had."""
    if sum(graph.macs.values()) > FLOAT64_MACS:
        return noise
    rows = {name: value[:FLOAT64_ROWS] for name, value in inputs.items()}
    try:
        exact, own = answers_in_float64(graph, rows), graph.run(rows)
    except EdgekitError:  # not every operator runs in float64
        return noise
    spread = {name: spreads(value) for name, value in answers.items()}
    added = differences(own, [exact], spread)
    return {name: np.maximum(value, np.minimum(added[name], FLOAT64_MULTIPLE * value)) for name, value in noise.items()}


def _with_transforms(
    graph: Graph, inputs: Mapping[str, Array], answers: Mapping[str, Array], noise: dict[str, Array]
) -> dict[str, Array]:
    """The noise, at least the differences that Fourier transforms in float64 make."""
    exact = with_exact_transforms(graph)
    if exact is None:
        return noise
    rows = {name: value[:TRACED_ROWS] for name, value in inputs.items()}
    try:
        found, own = exact.run(rows), graph.run(rows)
    except EdgekitError:  # an older ONNX Runtime may lack them in float64
        return noise
    added = differences(own, [found], {name: spreads(value) for name, value in answers.items()})
    return {name: np.maximum(value, added[name]) for name, value in noise.items()}


def _with_rounding(graph: Graph, answers: Mapping[str, Array], noise: dict[str, Array]) -> dict[str, Array]:
    """The noise, at least that of the rounding of outputs that clients get in half precision."""
    halves = {spec.name for spec in graph.logical_outputs if spec.dtype is DType.FLOAT16}
    return {
        name: np.maximum(value, HALF_ROUNDING * float(np.abs(answers[name]).max(initial=0.0)))
        if name in halves
        else value
        for name, value in noise.items()
    }


def _traced(graph: Graph) -> onnx.ModelProto | None:
    """The model with every float tensor among its outputs; None where their values would take too much memory."""
    sizes = [
        math.prod(size or 1 for size in shape) for name, shape in graph.shapes.items() if name not in graph.constants
    ]
    if TRACED_ROWS * 4 * sum(sizes) > TRACED_BYTES:
        return None
    outputs = {spec.name for spec in graph.outputs}
    inferred = onnx.shape_inference.infer_shapes(graph.model)
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for node in graph.nodes:
        for name in node.output:
            if kinds.get(name) == onnx.TensorProto.FLOAT and name not in outputs and node.op_type != "Constant":
                model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model


def _relative(before: Array, after: Array) -> float:
    if before.shape != after.shape or not before.size:
        return 0.0
    size = float(np.sqrt(np.mean(before.astype(np.float64) ** 2)))
    moved_by = float(np.sqrt(np.mean((after.astype(np.float64) - before) ** 2)))
    return moved_by / size if size > 0 and np.isfinite(moved_by) else 0.0
