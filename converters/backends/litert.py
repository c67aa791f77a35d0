"""LiteRT artifacts: a graph is lowered to a float .tflite once; litert-quantizer makes float16 and int8 files of it.

Static int8 files have int8 inputs and outputs, and the bindings hold their scales. So clients see a float interface,
and the graph has no float operators at either end.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from litert_quantizer import quantizer as litert_quantizer
from litert_quantizer.recipe import AlgorithmName, QuantGranularity, TFLOperationName

from converters.backends.accelerators import Accelerator, compile_for, require_fit
from converters.backends.bindings import bound, input_bindings, output_spec
from converters.backends.context import ConversionContext
from converters.backends.contract import Artifact, LoweredFile
from converters.backends.layers import Layer, layers_of
from converters.backends.tflite import half_tables
from converters.backends.tflite.biases import require_biases, wider_weights
from converters.backends.tflite.duplicates import byte_names
from converters.backends.tflite.flat_biases import with_flat_biases
from converters.backends.tflite.outputs import with_named_outputs
from converters.backends.tflite.ranges import tensor_histograms
from converters.backends.tflite.reader import (
    WeightedOp,
    activations,
    float_scopes,
    layer_at,
    match_layers,
    operators_of,
    parts_of_layers,
    products_of_constants,
    require_types,
    splits_of_fixed_scale,
    unchanged,
    weighted_ops,
)
from converters.backends.tflite.strip import strip
from converters.calibration.range_rules import read_range
from converters.foreign_text import failure
from converters.graph.graph import Graph
from converters.passes.contract import run_pass
from converters.passes.plain_activations import PlainActivations
from converters.passes.split_heads import Head
from converters.trials import CALIBRATION, try_litert
from edgekit.bundle.bindings import Binding, Joined
from edgekit.bundle.recipe import DYNAMIC, PRECISIONS, STATIC, WEIGHTS, WHOLE, Recipe
from edgekit.errors import ConversionError, RuntimeLoadError
from edgekit.runtimes import LITERT
from edgekit.runtimes.litert import LiteRTRuntime
from edgekit.runtimes.litert_messages import node_of
from edgekit.tensors import Array, DType, TensorSpec

ALL, ANY = ".*", TFLOperationName.ALL_SUPPORTED
HALF_TOLERANCE = 2.0**-10  # share of the largest weight by which weights in half precision may differ
half_tables.register()
NEW_RUNTIME = "2.1"  # the oldest ai-edge-litert that edgekit supports; for files that tflite-runtime 2.14 cannot run


class LiteRTBackend:
    """Builds .tflite artifacts with a batch of 1.

    Args:
        context: The context of the conversion.
        accelerator: Accelerator that the artifacts must fit. They are compiled for it where its compiler is installed.
    """

    name = "LiteRT"
    precisions = PRECISIONS
    lowers = True

    def __init__(self, context: ConversionContext, *, accelerator: Accelerator | None = None) -> None:
        self._context = context
        self._accelerator = accelerator

    @property
    def graph(self) -> Graph:
        """The graph of the artifacts. See `Backend.graph`."""
        return self._context.fixed

    def layers(self, base: Recipe = WHOLE) -> tuple[Layer, ...]:
        """Layers that a recipe may name. See `Backend.layers`."""
        return layers_of(self._context.base_graph(self._context.fixed, base))

    def build(self, recipe: Recipe) -> Artifact:
        """Make the .tflite of `recipe`. Raises as `Backend.build`."""
        graph, heads = self._context.split_heads(recipe, self._context.prepared(recipe, self._context.fixed))
        if self._accelerator is not None:
            graph = run_pass(PlainActivations(self._accelerator.operators), graph).graph
        lowered = self._context.float_file(recipe, graph)
        path = lowered.path
        if recipe.precision == "float16":
            path = self._written(recipe, self._float16(path))
        elif recipe.quantized:
            path = self._written(recipe, self._integers(graph, lowered, recipe))
        if self._accelerator is not None:
            require_fit(path.read_bytes(), self._accelerator)  # while it has the names of layers
        artifact = self._artifact(recipe, graph, heads, lowered, self._stripped(recipe, path))
        return artifact if self._accelerator is None else self._compiled(artifact, recipe, self._accelerator)

    def _compiled(self, artifact: Artifact, recipe: Recipe, accelerator: Accelerator) -> Artifact:
        """The artifact, which fits the accelerator, compiled for it. Raises as `compile_for`."""
        folder = self._context.folder / f"{accelerator.name}-{recipe.id}"
        compiled = compile_for(self._context.folder / f"litert-{recipe.id}-stripped.tflite", accelerator, folder)
        if compiled is None:
            missing = (
                f"checked against the operators of {accelerator.title}; {accelerator.compiler[0]} is not installed"
            )
            return msgspec.structs.replace(artifact, notes=(missing,))
        notes = (f"compiled by {accelerator.compiler[0]}", *compiled.on_cpu)
        return msgspec.structs.replace(artifact, compiled=compiled.data, notes=notes)

    def _float16(self, path: Path) -> bytes:
        quantizer = litert_quantizer.Quantizer(str(path))
        _keep_float(quantizer, ALL, "float16")
        return self._quantized(quantizer, None)

    def _integers(self, graph: Graph, lowered: LoweredFile, recipe: Recipe) -> bytes:
        quantizer = litert_quantizer.Quantizer(str(lowered.path))
        _add_rule(quantizer, recipe, ALL, 8)
        if recipe.precision == DYNAMIC:  # XNNPACK has no dynamic depthwise convolution: each would split the graph
            quantizer.add_weight_only_config(ALL, TFLOperationName.DEPTHWISE_CONV_2D, 8, _granularity(recipe))
        data = lowered.path.read_bytes()
        kept_float = products_of_constants(data)
        if recipe.precision == STATIC:
            kept_float += [*splits_of_fixed_scale(data), *float_scopes(data)]
        for scope in kept_float:
            quantizer.update_quantization_recipe(_only(scope), ANY, algorithm_key=AlgorithmName.NO_QUANTIZE)
        ops = weighted_ops(data)
        positions = match_layers(graph, ops)
        parts = parts_of_layers(graph, ops, set(recipe.float_layers) - set(positions))
        named = (*recipe.float_layers, *recipe.int4_layers)
        lost = [name for name in named if name not in positions and name not in parts]
        if lost:
            raise ConversionError(f"layers {', '.join(lost)} have no operator of their own in the LiteRT model")
        merged = sorted(set(recipe.int4_layers) - unchanged(graph, ops, positions))
        if merged:
            raise ConversionError(
                f"TensorFlow's converter multiplies a factor into the weights of {', '.join(merged)}, which undoes "
                "their rounding to 4 bits",
                advice="Remove these layers from int4_layers.",
            )
        float_positions = {positions[name] for name in recipe.float_layers if name in positions}
        float_positions.update(index for indices in parts.values() for index in indices)
        if recipe.precision == WEIGHTS:  # litert-quantizer fails on weights that a float layer shares with another
            shared = {ops[index].content for index in float_positions}
            float_positions |= {index for index, op in enumerate(ops) if op.content in shared}
        quantized = {op.content for index, op in enumerate(ops) if index not in float_positions}
        dtypes = {index: _float_dtype(ops[index], quantized) for index in sorted(float_positions)}
        for index, dtype in dtypes.items():
            _keep_float(quantizer, _only(ops[index].scope), dtype)
        fine = {ops[positions[name]].content for name in recipe.int4_layers}
        for index, op in enumerate(ops):  # litert-quantizer fails on weights that layers of 4 and 8 bits share
            if op.content in fine and index not in float_positions:
                _add_rule(quantizer, recipe, _only(op.scope), 4)
        if recipe.precision == STATIC:
            data = self._static(quantizer, lowered, self._ranges(graph, lowered, recipe))
        else:
            data = self._quantized(quantizer, None)
        require_types(data, {**dtypes, **{positions[name]: "int4" for name in recipe.int4_layers}})
        return data

    def _static(self, quantizer: Any, lowered: LoweredFile, ranges: dict[str, dict[str, Array]]) -> bytes:
        """Quantize with activations in `ranges`; again with wider weight scales where biases do not fit 32 bits."""
        before = lowered.path.read_bytes()
        with np.errstate(invalid="ignore"):  # biases that saturate
            data = self._quantized(quantizer, ranges)
        wider = wider_weights(before, data)
        if wider:
            data = self._quantized(quantizer, {**ranges, **wider})
            require_biases(before, data)
        return data

    def _quantized(self, quantizer: Any, ranges: dict[str, dict[str, Array]] | None) -> bytes:
        with _quantizing():
            result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
        return with_flat_biases(with_named_outputs(bytes(result.quantized_model)))

    def _ranges(self, graph: Graph, lowered: LoweredFile, recipe: Recipe) -> dict[str, dict[str, Array]]:
        """Smallest and largest value of every activation from the shared calibration, in the quantizer's form.

        The quantizer's own calibration averages extremes over rows in their order, and fails on recurrent layers.
        """
        _try("the float model with LiteRT's plain kernels", lowered.path, kernels=CALIBRATION)
        wanted = activations(lowered.path.read_bytes())
        histograms = tensor_histograms(
            lowered.path,
            list(self._rows(lowered)),
            wanted,
            probes=self._context.probes(graph),
            known=self._context.calibration_of(recipe, self._context.fixed).tensors,
        )
        ranges = {}
        for name, histogram in histograms.items():
            low, high = read_range(histogram, recipe.ranges)
            shape = (1,) * wanted[name]
            ranges[name] = {"min": np.full(shape, low, np.float32), "max": np.full(shape, high, np.float32)}
        return ranges

    def _rows(self, lowered: LoweredFile) -> Iterator[dict[str, Array]]:
        """The calibration split row by row, in the layout of the float artifact."""
        samples = self._context.samples
        permutes = lowered.input_permutes
        for row in range(len(samples)):
            values = [samples.inputs[spec.name][row : row + 1] for spec in self._context.graph.inputs]
            yield {
                f"input_{i}": np.ascontiguousarray(value.transpose(permute) if permute else value)
                for i, (value, permute) in enumerate(zip(values, permutes, strict=True))
            }

    def _written(self, recipe: Recipe, data: bytes) -> Path:
        path = self._context.folder / f"litert-{recipe.id}.tflite"
        path.write_bytes(data)
        return path

    def _stripped(self, recipe: Recipe, path: Path) -> Path:
        """Strip the file, and run it for the first time. Raises as `try_litert`.

        It is the last step, since the quantizer finds layers by names.
        """
        stripped = self._context.folder / f"litert-{recipe.id}-stripped.tflite"
        stripped.write_bytes(strip(path.read_bytes()))
        _try(f"candidate {recipe.id}", stripped, like=path)
        return stripped

    def _artifact(
        self, recipe: Recipe, graph: Graph, heads: tuple[Head, ...], lowered: LoweredFile, path: Path
    ) -> Artifact:
        """The finished file with its bindings; `graph` may have some of the model's outputs in parts."""
        runtime = LiteRTRuntime(path)
        try:
            tensors = {spec.name: spec for spec in (*runtime.inputs, *runtime.outputs)}
            scales = runtime.quantization
        finally:
            runtime.close()
        logical = self._context.graph
        bindings = _Bindings(tensors, scales)
        places = {spec.name: index for index, spec in enumerate(logical.inputs)}
        outputs = tuple(
            bindings.bind(output_spec(logical, spec), f"output_{index}", permute)
            for index, (spec, permute) in enumerate(zip(graph.outputs, lowered.output_permutes, strict=True))
        )
        given = input_bindings(
            logical,
            lambda spec: bindings.bind(spec, f"input_{places[spec.name]}", lowered.input_permutes[places[spec.name]]),
        )
        made = _joined(logical.logical_outputs, heads, outputs)
        _require_batches([one for one in given if one.in_artifact], made)
        return Artifact(
            file="model.tflite",
            content=path.read_bytes(),
            runtime=LITERT,
            inputs=given,
            outputs=made,
            runtime_version=NEW_RUNTIME if _needs_new_runtime(path.read_bytes(), recipe) else "",
            calibration=self._context.calibration_bytes(recipe, self._context.fixed)
            if recipe.precision == STATIC
            else b"",
        )


def _require_batches(inputs: Sequence[Binding], outputs: Sequence[Binding]) -> None:
    """Check that the rows of a batch can run one at a time: every output needs a batch to join them.

    Raises:
        ConversionError: an output has none, such as a constant.
    """
    if not any(None in one.spec.shape and one.artifact.shape[:1] == (1,) for one in inputs):
        return
    without = [one.spec.name for one in outputs if None not in one.spec.shape and not one.adds_axis]
    if without:
        kept = [one.spec.name for one in outputs if one.spec.name not in without]
        raise ConversionError(
            f"LiteRT runs the rows of a batch one at a time, and output {', '.join(without)} has no batch to join them",
            advice=f"Export the model without it, or leave it out of an ONNX model: --cut {','.join(kept) or 'OUTPUT'}",
        )


def _needs_new_runtime(data: bytes, recipe: Recipe) -> bool:
    """True where tflite-runtime 2.14 refuses a file, or gives wrong answers.

    It cannot unpack 4-bit weights. In dynamic dense layers it uses the first channel's scale for all channels.
    """
    if recipe.int4_layers:
        return True
    if recipe.precision != DYNAMIC or not recipe.per_channel:
        return False
    looped = "WHILE" in operators_of(data)  # dense layers in its body are not in the main graph
    return looped or any(op.operator == "FULLY_CONNECTED" and op.dtype == "int8" for op in weighted_ops(data))


def _add_rule(quantizer: Any, recipe: Recipe, scope: str, bits: int) -> None:
    """Add a rule for the operators in `scope`: the recipe's precision, with weights of `bits`. Later rules win."""
    granularity = _granularity(recipe)
    if recipe.precision == STATIC:
        quantizer.add_static_config(scope, ANY, 8, bits, weight_granularity=granularity)
    elif recipe.precision == DYNAMIC:
        quantizer.add_dynamic_config(scope, ANY, bits, granularity)
    else:
        quantizer.add_weight_only_config(scope, ANY, bits, granularity)


def _float_dtype(op: WeightedOp, quantized: Collection[bytes]) -> str:
    """The type of the weights of a float layer: float16, which XNNPACK unpacks, where it is precise enough.

    Weights that are also in `quantized` stay float32, because litert-quantizer fails on shared weights.
    """
    values = np.frombuffer(op.content, np.float32)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).astype(np.float32)
    fits = float(np.abs(halves - values).max()) <= HALF_TOLERANCE * float(np.abs(values).max())
    return "float16" if fits and op.content not in quantized else "float32"


def _try(name: str, path: Path, **options: Any) -> None:
    """As `try_litert`; where LiteRT refuses an operator of the file, the message names its layer."""
    try:
        try_litert(name, path, **options)
    except RuntimeLoadError as error:
        layer = layer_at(path.read_bytes(), node_of(str(error)))
        raise RuntimeLoadError(f"{error} (layer {layer!r})" if layer else str(error), advice=error.advice) from error


def _keep_float(quantizer: Any, scope: str, dtype: str) -> None:
    """Keep the operators in `scope` in float, with weights of `dtype`."""
    if dtype == "float16":
        quantizer.add_weight_only_config(scope, ANY, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    else:
        quantizer.update_quantization_recipe(scope, ANY, algorithm_key=AlgorithmName.NO_QUANTIZE)


def _granularity(recipe: Recipe) -> QuantGranularity:
    return QuantGranularity.CHANNELWISE if recipe.per_channel else QuantGranularity.TENSORWISE


def _only(scope: str) -> str:
    """The pattern of a rule for exactly this operator."""
    return f"^{re.escape(scope)}$"


@contextlib.contextmanager
def _quantizing() -> Iterator[None]:
    """Hide the quantizer's progress bars and its warning about memory, and wrap its errors.

    Raises:
        ConversionError: the quantizer raised an error.
    """
    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        byte_names(),
    ):
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors", category=UserWarning)
        try:
            yield
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise failure("litert-quantizer", "quantizing the file", error) from error


class _Bindings(NamedTuple):
    """Makes the bindings of one file."""

    tensors: dict[str, TensorSpec]
    scales: dict[str, tuple[float, int]]

    def bind(self, spec: TensorSpec, name: str, permute: tuple[int, ...]) -> Binding:
        """The binding of the logical tensor `spec` to the file's tensor `name`."""
        if name not in self.tensors:
            found = ", ".join(sorted(self.tensors))
            raise ConversionError(f"the LiteRT model has the tensors {found}, expected {name}")
        tensor = self.tensors[name]
        quantized = tensor.dtype in (DType.INT8, DType.UINT8, DType.INT16) and tensor.dtype is not spec.dtype
        scale, zero_point = self.scales[name] if quantized else (None, 0)
        return bound(spec, tensor, permute, scale, zero_point)


def _joined(
    specs: tuple[TensorSpec, ...], heads: tuple[Head, ...], bindings: tuple[Binding, ...]
) -> tuple[Binding, ...]:
    """Bindings of the model's outputs `specs`, from the bindings of a graph whose `heads` were split."""
    by_name = {binding.spec.name: binding for binding in bindings}
    split = {head.output: head for head in heads}
    joined = []
    for spec in specs:
        if spec.name not in split:
            joined.append(by_name[spec.name])
            continue
        parts = tuple(by_name[name] for name in split[spec.name].parts)
        name = "+".join(part.artifact.name for part in parts)
        whole = TensorSpec(name, spec.dtype, (*parts[0].artifact.shape[:1], *spec.shape[1:]))
        joined.append(Binding(spec, whole, joined=Joined(split[spec.name].axis, parts)))
    return tuple(joined)
