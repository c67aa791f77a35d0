"""What an artifact costs on a target: an estimate from multiply-adds, bytes and what the target's cores can do.

The figures per multiply-add are fitted to instruction counts of a keyword spotting network of depthwise and pointwise
convolutions on emulated Cortex-A72 and Cortex-A76 cores under LiteRT with XNNPACK, one thread, in five precisions; the
estimate of that network is within 5 % of each count. For x86-64 they follow times of four small networks on a
processor without VNNI. Other networks may differ by more; the order of their candidates is what the estimate is for.
"""

from __future__ import annotations

import math

import msgspec

from converters.graph import Graph, attributes, label
from edgekit.manifest import Cost
from edgekit.recipe import DYNAMIC, STATIC, WEIGHTS, Recipe
from edgekit.targets import TargetProfile

INSTRUCTIONS = "instructions"
MULTIPLY_ADDS = "float32 multiply-adds"
FLOAT, INT8, INT8_DYNAMIC, INT4_DYNAMIC = "float", "int8", "int8-dynamic", "int4-dynamic"
CONV, DEPTHWISE, DENSE = "conv", "depthwise", "dense"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")

CONVERTED = 3.0  # instructions for each value that is quantized or dequantized between layers of different kinds
UNPACKED = 20.0  # for each 4-bit weight that is computed with in float: unpacked anew at every run
OTHER = 1.0  # for each value that an operator without weights reads or writes
FREE = ("Clip", "Flatten", "Identity", "Relu", "Reshape", "Squeeze", "Unsqueeze")  # fused, or only another shape


class Core(msgspec.Struct, frozen=True):
    """What one class of processor cores needs.

    Attributes:
        per_mac: Instructions for one multiply-add, by kind of arithmetic and by kind of layer.
        cache_bytes: Weights beyond this are fetched from memory at every run.
        per_byte: What one byte from memory costs, in instructions that could have been done meanwhile.
    """

    per_mac: dict[str, dict[str, float]]
    cache_bytes: int
    per_byte: float


def _kinds(conv: float, depthwise: float, dense: float) -> dict[str, float]:
    return {CONV: conv, DEPTHWISE: depthwise, DENSE: dense}


NEON = Core(  # no int8 dot product: Cortex-A53, A72
    {
        FLOAT: _kinds(0.50, 0.80, 0.50),
        INT8: _kinds(0.70, 1.00, 0.60),
        INT8_DYNAMIC: _kinds(0.777, 2.20, 0.65),
        INT4_DYNAMIC: _kinds(0.588, 2.20, 0.60),
    },
    cache_bytes=1 << 20,
    per_byte=0.75,
)
DOT_PRODUCT = Core(  # Cortex-A55, A76 and later; depthwise convolutions have no use for it
    {
        FLOAT: _kinds(0.481, 0.75, 0.48),
        INT8: _kinds(0.193, 0.90, 0.17),
        INT8_DYNAMIC: _kinds(0.207, 2.20, 0.20),
        INT4_DYNAMIC: _kinds(0.342, 2.20, 0.25),
    },
    cache_bytes=2 << 20,
    per_byte=0.75,
)
AVX2 = Core(  # x86-64 without VNNI
    {
        FLOAT: _kinds(0.20, 0.40, 0.25),
        INT8: _kinds(0.29, 0.50, 0.12),
        INT8_DYNAMIC: _kinds(0.22, 1.80, 0.13),
        INT4_DYNAMIC: _kinds(0.72, 1.80, 0.13),
    },
    cache_bytes=4 << 20,
    per_byte=0.25,
)


def estimate(graph: Graph, profile: TargetProfile, recipe: Recipe) -> Cost:
    """The cost of one row: in instructions of the target's cores, or in float32 multiply-adds where `speed` is given.

    It ranks candidates of one network on one target; it is no time.
    """
    if profile.speed:  # an accelerator: what it does with an instruction is not known
        macs = sum(graph.macs.values())
        return Cost("estimate", macs / profile.speed.get(recipe.precision, 1.0), MULTIPLY_ADDS)
    return Cost("estimate", float(round(_instructions(graph, core_of(profile), recipe))), INSTRUCTIONS)


def core_of(profile: TargetProfile) -> Core:
    """The core that a profile's features say; a plain 64-bit ARM core where they say nothing."""
    if profile.arch == "x86_64":
        return AVX2
    return DOT_PRODUCT if "asimddp" in profile.cpu_features else NEON


def memory_mib(graph: Graph, artifact_bytes: int) -> int:
    """About what a loaded artifact needs in MiB, rounded up: its weights as they lie and unpacked, and activations."""
    one = graph.with_batch(1)
    sizes = [_count(one, node.output[0]) * 4 for node in one.nodes]
    largest = sum(sorted(sizes)[-3:])
    return -(-(artifact_bytes + graph.parameters * 4 + largest) // (1024 * 1024))


def _instructions(graph: Graph, core: Core, recipe: Recipe) -> float:
    one = graph.with_batch(1)
    macs = graph.macs
    total, streamed = 0.0, 0.0
    for node in one.nodes:
        if node.op_type == "Constant" or node.op_type in FREE:
            continue
        weights = sum(one.constants[name].size for name in node.input[1:3] if name in one.constants)
        values = _count(one, node.output[0])
        if node.op_type not in WEIGHTED:
            read = max((_count(one, name) for name in node.input if name and name not in one.constants), default=0)
            total += OTHER * max(values, read) * (0.25 if recipe.precision == STATIC else 1.0)
            continue
        name = label(node)
        kind = FLOAT if name in recipe.float_layers else _kind(recipe, four_bit=name in recipe.int4_layers)
        total += macs.get(node.output[0], 0) * core.per_mac[kind][_class_of(node)]
        streamed += weights * {FLOAT: 4.0, INT4_DYNAMIC: 0.5}.get(kind, 1.0)
        if kind == FLOAT and recipe.precision == STATIC:
            total += CONVERTED * (values + _count(one, node.input[0]))
        if kind == FLOAT and name in recipe.int4_layers:
            total += UNPACKED * weights
    return total + core.per_byte * max(0.0, streamed - core.cache_bytes)


def _kind(recipe: Recipe, *, four_bit: bool) -> str:
    if recipe.precision == DYNAMIC:
        return INT4_DYNAMIC if four_bit else INT8_DYNAMIC
    if recipe.precision == STATIC:
        return INT4_DYNAMIC if four_bit else INT8
    assert recipe.precision in ("float32", "float16", WEIGHTS)  # weights are unpacked once, when the model is loaded
    return FLOAT


def _class_of(node: object) -> str:
    kind = node.op_type  # type: ignore[attr-defined]  # onnx has no types
    if kind == "Conv" and attributes(node).get("group", 1) > 1:
        return DEPTHWISE
    return CONV if kind in ("Conv", "ConvTranspose") else DENSE


def _count(graph: Graph, tensor: str) -> int:
    return math.prod(size or 1 for size in graph.shapes.get(tensor, ()))
