"""Estimates the cost of a graph on a target, from multiply-adds, bytes and the features of the target's cores.

It is used where no file exists yet, on processors that are not ARM, and for files with loops; `file_estimate` estimates
other files. The figures for ARM are fitted to instruction counts of thirteen networks in up to nine precisions on
emulated Cortex-A72 and Cortex-A76 cores, with LiteRT, XNNPACK and one thread. The figures for x86-64 follow times of
four small networks on a processor without VNNI. The figures for loops are fitted to instruction counts of seven LSTMs
of 32 to 128 steps on x86-64, and are within 20 % of each.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from converters.cost.operations.operation import is_partial
from converters.cost.overhead import NONE, Overhead
from converters.graph.graph import Graph, attributes, label
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import DYNAMIC, STATIC, WEIGHTS, Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.runtimes import LITERT

ESTIMATE, INSTRUCTIONS = "estimate", "instructions"
MULTIPLY_ADDS = "float32 multiply-adds"
FLOAT, INT8, INT8_DYNAMIC, INT4, INT4_DYNAMIC = "float", "int8", "int8-dynamic", "int4", "int4-dynamic"
CONV, DEPTHWISE, DENSE = "conv", "depthwise", "dense"
RECURRENT = ("LSTM", "GRU", "RNN")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)

CONVERTED = 5.0  # instructions per value that is quantized or dequantized between layers of different kinds
FAST_IN_INT8 = (  # operators without weights whose int8 kernels are fast
    "Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Pad", "ReduceMean", "Slice", "Split",
    "Transpose",
)  # fmt: skip
# Median errors of the estimate against instruction counts: LiteRT on Cortex-A72 and A76, by precision.
MEDIAN_ERRORS = {"float32": 0.02, "float16": 0.02, WEIGHTS: 0.02, STATIC: 0.04, DYNAMIC: 0.08}
FOUR_BIT_ERROR = 0.05
PER_CALL = 350.0  # instructions per operator of a loop's body and step, and per operator outside delegates
PER_WRITE = 8.0  # instructions per value that a loop writes, at each step
REPEATING = (*RECURRENT, "Loop", "Scan")
# These are fused into other operators, or only change the shape.
FREE = ("Clip", "Flatten", "Identity", "Relu", "Reshape", "Squeeze", "Unsqueeze")


class Kernels(msgspec.Struct, frozen=True):
    """Instructions that one kind of arithmetic needs.

    Attributes:
        per_mac: Instructions per multiply-add, by class of layer.
        block: Inputs and outputs of a layer are padded to multiples of these sizes.
        per_row: Instructions per row that is quantized at run time; a pointwise convolution has one row per position.
        unpacked: Instructions per 4-bit weight that is unpacked at every run, by class of layer.
        partial: Factor for a pointwise convolution and a dense layer with `is_partial` outputs.
    """

    per_mac: dict[str, float]
    block: tuple[int, int] = (1, 1)
    per_row: float = 0.0
    unpacked: dict[str, float] = {}
    partial: dict[str, float] = {}


class Core(msgspec.Struct, frozen=True):
    """Instructions that one class of processor cores needs.

    Attributes:
        kernels: Instructions by kind of arithmetic.
        cache_bytes: Weights beyond this size are read from memory at every run.
        per_byte: Cost of one byte from memory, in instructions that could run in the same time.
        per_layer: Instructions per layer with weights, besides its work; a recurrent layer counts twice per step.
        per_gate: Instructions per value of a recurrent layer's gates, at each step.
        per_value: Instructions per value that an operator without weights reads or writes in float.
        per_int8_value: The same in static int8: for `FAST_IN_INT8` operators, and for others, which use lookup tables.
    """

    kernels: dict[str, Kernels]
    cache_bytes: int
    per_byte: float
    per_layer: float = 1300.0
    per_gate: float = 12.0
    per_value: float = 3.0
    per_int8_value: tuple[float, float] = (0.75, 22.0)


def _kinds(conv: float, depthwise: float, dense: float) -> dict[str, float]:
    return {CONV: conv, DEPTHWISE: depthwise, DENSE: dense}


_PARTIAL = {CONV: 1.52, DENSE: 3.75}  # counted: 9 to 204 outputs with LiteRT 2.3.0
_FLOAT_UNPACKED = _kinds(5.5, 0.0, 1.0)

NEON = Core(  # without int8 dot product: Cortex-A53, A72
    {
        FLOAT: Kernels(_kinds(0.39, 1.34, 0.48), (1, 8), unpacked=_FLOAT_UNPACKED, partial=_PARTIAL),
        INT8: Kernels(_kinds(0.33, 1.41, 0.33), (8, 8)),
        INT8_DYNAMIC: Kernels(_kinds(0.41, 1.34, 0.37), (8, 16), per_row=195.0),
        INT4: Kernels(_kinds(0.36, 1.41, 0.70), unpacked=_kinds(10.5, 0.0, 0.0)),
        INT4_DYNAMIC: Kernels(_kinds(0.27, 1.34, 0.62), unpacked=_kinds(26.7, 0.0, 0.0)),
    },
    cache_bytes=1 << 20,
    per_byte=0.75,
)
DOT_PRODUCT = Core(  # Cortex-A55, A76 and later; depthwise convolutions gain little from it
    {
        FLOAT: Kernels(_kinds(0.38, 1.37, 0.46), (1, 8), unpacked=_FLOAT_UNPACKED, partial=_PARTIAL),
        INT8: Kernels(_kinds(0.12, 1.06, 0.14), (4, 16)),
        INT8_DYNAMIC: Kernels(_kinds(0.11, 1.37, 0.22), (4, 16), per_row=695.0),
        INT4: Kernels(_kinds(0.175, 1.06, 0.17), unpacked=_kinds(6.3, 0.0, 0.0)),
        INT4_DYNAMIC: Kernels(_kinds(0.116, 1.37, 0.26), unpacked=_kinds(20.0, 0.0, 0.0)),
    },
    cache_bytes=2 << 20,
    per_byte=0.75,
)
_AVX2_FOUR_BITS = Kernels(_kinds(0.72, 0.40, 0.13))
AVX2 = Core(  # x86-64 without VNNI
    {
        FLOAT: Kernels(_kinds(0.20, 0.40, 0.25), unpacked=_kinds(20.0, 20.0, 20.0)),
        INT8: Kernels(_kinds(0.29, 0.50, 0.12)),
        INT8_DYNAMIC: Kernels(_kinds(0.22, 0.40, 0.13)),
        INT4: _AVX2_FOUR_BITS,
        INT4_DYNAMIC: _AVX2_FOUR_BITS,
    },
    cache_bytes=4 << 20,
    per_byte=0.25,
    per_layer=0.0,
    per_gate=0.0,
    per_value=1.0,
    per_int8_value=(0.25, 0.25),
)


def estimate(graph: Graph, profile: TargetProfile, recipe: Recipe, overhead: Overhead = NONE) -> Cost:
    """The cost of one row, in instructions of the target's cores, or in float32 multiply-adds of an accelerator.

    The cost ranks candidates of one network on one target; it is not a time. `overhead` is added for cores only,
    because artifacts with loops run on cores only.
    """
    if profile.speed:  # an accelerator, whose instructions are not known
        macs = sum(graph.macs.values())
        return Cost(ESTIMATE, macs / profile.speed.get(recipe.precision, 1.0), MULTIPLY_ADDS)
    return Cost(ESTIMATE, float(round(_instructions(graph, core_of(profile), recipe, overhead))), INSTRUCTIONS)


def median_error(profile: TargetProfile, runtime: str, recipe: Recipe) -> float | None:
    """The median error of `estimate` as a share; None where it was not measured (see `docs/limits.md`)."""
    if profile.speed or profile.arch == "x86_64" or runtime != LITERT:
        return None
    return FOUR_BIT_ERROR if recipe.int4_layers else MEDIAN_ERRORS.get(recipe.precision, MEDIAN_ERRORS["float32"])


def computes_in_float(recipe: Recipe) -> bool:
    """True where the layers of a recipe compute in float, apart from single ones."""
    return _kind(recipe, four_bit=False) == FLOAT


def core_of(profile: TargetProfile) -> Core:
    """The core that matches a profile's features; a plain 64-bit ARM core without features."""
    if profile.arch == "x86_64":
        return AVX2
    return DOT_PRODUCT if "asimddp" in profile.cpu_features else NEON


def memory_mib(graph: Graph, artifact_bytes: int) -> int:
    """Estimated memory of a loaded artifact in MiB, rounded up: the file, unpacked weights, and activations."""
    one = graph.with_batch(1)
    sizes = [_count(one, node.output[0]) * 4 for node in one.nodes]
    largest = sum(sorted(sizes)[-3:])
    return -(-(artifact_bytes + graph.parameters * 4 + largest) // (1024 * 1024))


def _instructions(graph: Graph, core: Core, recipe: Recipe, overhead: Overhead) -> float:
    one = graph.with_batch(1)
    macs = graph.macs
    total, streamed = PER_CALL * overhead.outside, 0.0
    if graph.opaque is not None:  # the layers are not known: all count as dense ones
        total += graph.opaque.macs * core.kernels[_kind(recipe, four_bit=False)].per_mac[DENSE]
    for loop in overhead.loops:
        dense = core.kernels[_kind(recipe, four_bit=False)].per_mac[DENSE]
        total += loop.steps * (PER_CALL * loop.operators + PER_WRITE * loop.values + dense * loop.macs)
    for node in one.nodes:
        if node.op_type in ("Constant", *FREE, *(REPEATING if overhead.loops else ())):
            continue
        read = max((_count(one, name) for name in node.input if name and name not in one.constants), default=0)
        if node.op_type not in WEIGHTED:
            each = core.per_value
            if recipe.precision == STATIC:
                each = core.per_int8_value[node.op_type not in FAST_IN_INT8]
            total += each * max(_count(one, node.output[0]), read)
            continue
        name = label(node)
        kind = FLOAT if name in recipe.float_layers else _kind(recipe, four_bit=name in recipe.int4_layers)
        kernels, sort = core.kernels[kind], _class_of(node)
        weights = sum(one.constants[name].size for name in node.input[1:3] if name in one.constants)
        filled = macs.get(node.output[0], 0) * (1.0 if sort == DEPTHWISE else _padding_factor(node, one, kernels))
        total += filled * kernels.per_mac[sort] + _steps(node, one, core)
        streamed += weights * {FLOAT: 4.0, INT4: 0.5, INT4_DYNAMIC: 0.5}.get(kind, 1.0)
        if sort != DEPTHWISE:  # depthwise layers of dynamic files compute in float
            total += kernels.per_row * _rows(node, one)
        if kind == FLOAT and recipe.precision == STATIC:
            total += CONVERTED * (_count(one, node.output[0]) + read)
        if name in recipe.int4_layers:
            total += kernels.unpacked.get(sort, 0.0) * weights
    return total + core.per_byte * max(0.0, streamed - core.cache_bytes)


def _padding_factor(node: Any, one: Graph, kernels: Kernels) -> float:
    """Factor of the work because a layer's inputs and outputs are padded to whole blocks, or computed one by one."""
    shape = one.shapes.get(node.input[1], ())
    if None in shape or len(shape) < 2:
        return 1.0
    sizes = [size or 1 for size in shape]
    if node.op_type in RECURRENT:
        hidden = (one.shapes.get(node.input[2]) or (1,))[-1] or 1
        reads, makes = [sizes[2], hidden], sizes[1]
    elif node.op_type == "Conv":
        reads, makes = [sizes[1]], sizes[0]
    elif node.op_type == "ConvTranspose":
        reads, makes = [sizes[0]], sizes[1]
    else:
        makes = (one.shapes.get(node.output[0]) or (1,))[-1] or 1
        reads = [sizes[-2] if sizes[-1] == makes else sizes[-1]]
    read = sum(_round_up(size, kernels.block[0]) for size in reads) / sum(reads)
    sort = _class_of(node)
    if sort in kernels.partial and is_partial(makes) and (sort == DENSE or _window(node, one) == 1):
        return read * kernels.partial[sort]
    return read * _round_up(makes, kernels.block[1]) / makes


def _rows(node: Any, one: Graph) -> int:
    """How often a layer's input is quantized at run time: once per row, for a convolution with a window once in all."""
    if node.op_type in RECURRENT:
        return 2 * _unrolled(node, one)
    values = _count(one, node.output[0])
    shape = one.shapes.get(node.output[0], ())
    if node.op_type == "ConvTranspose" or (node.op_type == "Conv" and _window(node, one) > 1):
        return 1
    return values // max((shape[1] if node.op_type == "Conv" else shape[-1]) or 1, 1) if len(shape) > 1 else 1


def _steps(node: Any, one: Graph, core: Core) -> float:
    """Instructions of a layer besides its multiply-adds."""
    if node.op_type not in RECURRENT:
        return core.per_layer
    gates = one.shapes[node.input[1]][1] or 0
    return _unrolled(node, one) * (2 * core.per_layer + core.per_gate * gates)


def _unrolled(node: Any, one: Graph) -> int:
    """Number of steps of a recurrent layer, both directions added."""
    return (one.shapes[node.input[0]][0] or 1) * (one.shapes[node.input[1]][0] or 1)


def _window(node: Any, one: Graph) -> int:
    return math.prod(size or 1 for size in one.shapes.get(node.input[1], ())[2:])


def _round_up(size: int, block: int) -> int:
    return -(-size // block) * block


def _kind(recipe: Recipe, *, four_bit: bool) -> str:
    if recipe.precision == DYNAMIC:
        return INT4_DYNAMIC if four_bit else INT8_DYNAMIC
    if recipe.precision == STATIC:
        return INT4 if four_bit else INT8
    assert recipe.precision in ("float32", "float16", WEIGHTS)  # weights are unpacked once, when the model loads
    return FLOAT


def _class_of(node: object) -> str:
    kind = node.op_type  # type: ignore[attr-defined]  # onnx has no types
    if kind == "Conv" and attributes(node).get("group", 1) > 1:
        return DEPTHWISE
    return CONV if kind in ("Conv", "ConvTranspose") else DENSE


def _count(graph: Graph, tensor: str) -> int:
    return math.prod(size or 1 for size in graph.shapes.get(tensor, ()))
