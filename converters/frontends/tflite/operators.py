"""Convert operators of float .tflite files to ONNX nodes: one function for each operator.

LiteRT's schema defines the operators. Images are (N, H, W, C) in LiteRT and (N, C, H, W) in ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converters.frontends.tflite.builder import Builder, CannotReadError

Reader = Callable[[Builder, Any], None]
READERS: dict[str, Reader] = {}
UNARY_OPERATORS = {
    "RELU": "Relu", "LOGISTIC": "Sigmoid", "TANH": "Tanh", "EXP": "Exp", "LOG": "Log", "SQRT": "Sqrt", "NEG": "Neg",
    "ABS": "Abs", "FLOOR": "Floor", "CEIL": "Ceil", "ROUND": "Round", "SIN": "Sin", "COS": "Cos", "ELU": "Elu",
    "HARD_SWISH": "HardSwish", "SIGN": "Sign",
}  # fmt: skip
BINARY = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MAXIMUM": "Max", "MINIMUM": "Min", "POW": "Pow"}
REDUCE = {"REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin", "REDUCE_PROD": "ReduceProd"}


def reads(*operators: str) -> Callable[[Reader], Reader]:
    """Register a function for `operators`."""

    def register(function: Reader) -> Reader:
        READERS.update(dict.fromkeys(operators, function))
        return function

    return register


@reads(*UNARY_OPERATORS)
def unary(b: Builder, op: Any) -> None:
    """Elementwise functions with one input."""
    b.result(op, b.node(UNARY_OPERATORS[b.kind(op)], [b.input(op, 0)]))


@reads(*BINARY)
def binary(b: Builder, op: Any) -> None:
    """Operators on two values with broadcasting, and a fused activation."""
    b.result(op, b.activated(op, b.node(BINARY[b.kind(op)], [b.input(op, 0), b.input(op, 1)])))


@reads("RELU6", "RELU_N1_TO_1")
def bounded(b: Builder, op: Any) -> None:
    """Relu with limits."""
    low, high = (0.0, 6.0) if b.kind(op) == "RELU6" else (-1.0, 1.0)
    b.result(op, b.node("Clip", [b.input(op, 0), b.scalar(low), b.scalar(high)]))


@reads("RSQRT", "SQUARE", "SQUARED_DIFFERENCE")
def powers(b: Builder, op: Any) -> None:
    """Squares and roots that need two nodes in ONNX."""
    x = b.input(op, 0)
    if b.kind(op) == "RSQRT":
        b.result(op, b.node("Reciprocal", [b.node("Sqrt", [x])]))
        return
    x = b.node("Sub", [x, b.input(op, 1)]) if b.kind(op) == "SQUARED_DIFFERENCE" else x
    b.result(op, b.node("Mul", [x, x]))


@reads("LEAKY_RELU")
def leaky_relu(b: Builder, op: Any) -> None:
    """Relu with a slope below zero."""
    b.result(op, b.node("LeakyRelu", [b.input(op, 0)], alpha=float(op.builtinOptions.alpha)))


@reads("PRELU")
def prelu(b: Builder, op: Any) -> None:
    """Relu with learned slopes."""
    b.result(op, b.node("PRelu", [b.input(op, 0), b.input(op, 1)]))


@reads("GELU")
def gelu(b: Builder, op: Any) -> None:
    """Gelu, exact or by tanh, as several nodes: the canonical operator set has no Gelu."""
    x = b.input(op, 0)
    if op.builtinOptions.approximate:
        cube = b.node("Mul", [b.node("Mul", [b.node("Mul", [x, x]), x]), b.scalar(0.044715)])
        gate = b.node("Tanh", [b.node("Mul", [b.node("Add", [x, cube]), b.scalar((2 / np.pi) ** 0.5)])])
    else:
        gate = b.node("Erf", [b.node("Mul", [x, b.scalar(0.5**0.5)])])
    half = b.node("Mul", [b.node("Mul", [x, b.node("Add", [gate, b.scalar(1.0)])]), b.scalar(0.5)])
    b.result(op, half)


@reads("SOFTMAX", "LOG_SOFTMAX")
def softmax(b: Builder, op: Any) -> None:
    """Softmax over the last axis, with LiteRT's factor."""
    x = b.input(op, 0)
    if b.kind(op) == "LOG_SOFTMAX":
        b.result(op, b.node("LogSoftmax", [x], axis=-1))
        return
    beta = float(op.builtinOptions.beta)
    b.result(op, b.node("Softmax", [x if beta == 1 else b.node("Mul", [x, b.scalar(beta)])], axis=-1))


@reads("CONV_2D", "DEPTHWISE_CONV_2D")
def conv(b: Builder, op: Any) -> None:
    """A convolution; weights (out, H, W, in), or (1, H, W, out) if depthwise."""
    options, weights = op.builtinOptions, b.constant(op, 1)
    depthwise = b.kind(op) == "DEPTHWISE_CONV_2D"
    kernel = weights.transpose(3, 0, 1, 2) if depthwise else weights.transpose(0, 3, 1, 2)
    channels = b.shape(op.inputs[0])[3]
    if channels % kernel.shape[1]:
        raise CannotReadError(f"{channels} channels and weights of {kernel.shape[1]}")
    attributes = {
        "strides": [options.strideH, options.strideW],
        "dilations": [options.dilationHFactor, options.dilationWFactor],
        "group": channels // kernel.shape[1],
        "kernel_shape": list(kernel.shape[2:]),
        "auto_pad": b.padding(options),
    }
    constants = [b.add_constant(kernel), *([b.input(op, 2)] if b.has(op, 2) else [])]
    result = b.node("Conv", [b.channel_first(b.input(op, 0)), *constants], **attributes)
    b.result(op, b.activated(op, b.channel_last(result)))


@reads("TRANSPOSE_CONV")
def transpose_conv(b: Builder, op: Any) -> None:
    """A transposed convolution; weights (out, H, W, in). Surplus is cut evenly, an odd one at the end."""
    options, weights = op.builtinOptions, b.constant(op, 1)
    before, after = b.shape(op.inputs[2])[1:3], b.shape(op.outputs[0])[1:3]
    strides, sizes = (options.strideH, options.strideW), weights.shape[1:3]
    full = [(n - 1) * s + k for n, s, k in zip(before, strides, sizes, strict=True)]
    total = [max(f - n, 0) for f, n in zip(full, after, strict=True)]
    begin = [t // 2 for t in total]
    attributes = {
        "strides": list(strides),
        "pads": [*begin, *(t - s for t, s in zip(total, begin, strict=True))],
        "output_padding": [max(n - f, 0) for f, n in zip(full, after, strict=True)],
    }
    constants = [b.add_constant(weights.transpose(3, 0, 1, 2)), *([b.input(op, 3)] if b.has(op, 3) else [])]
    result = b.node("ConvTranspose", [b.channel_first(b.input(op, 2)), *constants], **attributes)
    b.result(op, b.activated(op, b.channel_last(result)))


@reads("AVERAGE_POOL_2D", "MAX_POOL_2D")
def pool(b: Builder, op: Any) -> None:
    """Pooling; means exclude the padding."""
    options = op.builtinOptions
    kind = "AveragePool" if b.kind(op) == "AVERAGE_POOL_2D" else "MaxPool"
    window = {
        "kernel_shape": [options.filterHeight, options.filterWidth],
        "strides": [options.strideH, options.strideW],
        "auto_pad": b.padding(options),
    }
    result = b.node(kind, [b.channel_first(b.input(op, 0))], **window)
    b.result(op, b.activated(op, b.channel_last(result)))


@reads("FULLY_CONNECTED")
def dense(b: Builder, op: Any) -> None:
    """A dense layer over the last axis; weights (out, in)."""
    constant, x, width = b.value(op.inputs[1]), b.input(op, 0), b.shape(op.inputs[1])[1]
    if b.shape(op.inputs[0])[-1] != width:
        x = b.node("Reshape", [x, b.ints(-1, width)])
    weights = b.node("Transpose", [b.input(op, 1)], perm=[1, 0]) if constant is None else b.add_constant(constant.T)
    y = b.node("MatMul", [x, weights])
    y = b.node("Add", [y, b.input(op, 2)]) if b.has(op, 2) else y
    y = b.activated(op, y)
    b.result(op, b.node("Reshape", [y, b.ints(*b.shape(op.outputs[0]))]))


@reads("BATCH_MATMUL")
def matmul(b: Builder, op: Any) -> None:
    """Matrix products; either factor can be transposed."""
    options, names = op.builtinOptions, [b.input(op, 0), b.input(op, 1)]
    for index, transposed in enumerate((options.adjX, options.adjY)):
        if transposed:
            rank = len(b.shape(op.inputs[index]))
            names[index] = b.node("Transpose", [names[index]], perm=[*range(rank - 2), rank - 1, rank - 2])
    b.result(op, b.node("MatMul", names))


@reads("MEAN", "SUM", *REDUCE)
def reduce(b: Builder, op: Any) -> None:
    """Reductions over constant axes."""
    axes = [int(axis) for axis in np.ravel(b.constant(op, 1))]
    keep, x = int(op.builtinOptions.keepDims), b.input(op, 0)
    if b.kind(op) == "SUM":
        b.result(op, b.node("ReduceSum", [x, b.ints(*axes)], keepdims=keep))
        return
    b.result(op, b.node({"MEAN": "ReduceMean", **REDUCE}[b.kind(op)], [x], axes=axes, keepdims=keep))


@reads("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
def reshape(b: Builder, op: Any) -> None:
    """A change of shape; the new shape is that of the output tensor."""
    b.result(op, b.node("Reshape", [b.input(op, 0), b.ints(*b.shape(op.outputs[0]))]))


@reads("TRANSPOSE")
def transpose(b: Builder, op: Any) -> None:
    """A transposition."""
    b.result(op, b.node("Transpose", [b.input(op, 0)], perm=[int(axis) for axis in b.constant(op, 1)]))


@reads("CONCATENATION")
def concat(b: Builder, op: Any) -> None:
    """Concatenation along one axis."""
    names = [b.input(op, index) for index in range(len(op.inputs))]
    b.result(op, b.activated(op, b.node("Concat", names, axis=int(op.builtinOptions.axis))))


@reads("PAD", "PADV2", "MIRROR_PAD")
def pad(b: Builder, op: Any) -> None:
    """Padding by a constant, or by reflection."""
    pairs = b.constant(op, 1)
    names = [b.input(op, 0), b.ints(*pairs[:, 0].tolist(), *pairs[:, 1].tolist())]
    if b.kind(op) == "MIRROR_PAD":
        if op.builtinOptions.mode:
            raise CannotReadError("symmetric reflection")
        b.result(op, b.node("Pad", names, mode="reflect"))
        return
    b.result(op, b.node("Pad", names + ([b.input(op, 2)] if b.kind(op) == "PADV2" else [])))


@reads("SLICE")
def cut(b: Builder, op: Any) -> None:
    """A slice with constant start and size."""
    starts = [int(n) for n in b.constant(op, 1)]
    ends = [start + size for start, size in zip(starts, b.shape(op.outputs[0]), strict=True)]
    b.result(op, b.node("Slice", [b.input(op, 0), b.ints(*starts), b.ints(*ends)]))


@reads("STRIDED_SLICE")
def strided_slice(b: Builder, op: Any) -> None:
    """A slice with steps; the output's shape drops axes with a single index."""
    options = op.builtinOptions
    if options.ellipsisMask or options.newAxisMask:
        raise CannotReadError("an ellipsis or a new axis")
    starts, ends, steps = ([int(n) for n in b.constant(op, index)] for index in (1, 2, 3))
    for axis, step in enumerate(steps):
        if options.beginMask >> axis & 1:
            starts[axis] = 0 if step > 0 else 2**31
        if options.shrinkAxisMask >> axis & 1:
            ends[axis], steps[axis] = (starts[axis] + 1) or 2**31, 1
        elif options.endMask >> axis & 1:
            ends[axis] = 2**31 if step > 0 else -(2**31)
    part = b.node("Slice", [b.input(op, 0), b.ints(*starts), b.ints(*ends), b.ints(*range(len(steps))), b.ints(*steps)])
    b.result(op, b.node("Reshape", [part, b.ints(*b.shape(op.outputs[0]))]))


@reads("SPLIT", "SPLIT_V")
def split(b: Builder, op: Any) -> None:
    """A split along one axis, with the sizes of the output tensors."""
    data, where = (1, 0) if b.kind(op) == "SPLIT" else (0, 2)
    axis = int(np.ravel(b.constant(op, where))[0])
    sizes = [b.shape(index)[axis] for index in op.outputs]
    b.results(op, b.nodes("Split", [b.input(op, data), b.ints(*sizes)], len(op.outputs), axis=axis))


@reads("PACK")
def pack(b: Builder, op: Any) -> None:
    """Values stacked along a new axis."""
    axis = int(op.builtinOptions.axis)
    names = [b.node("Unsqueeze", [b.input(op, index), b.ints(axis)]) for index in range(len(op.inputs))]
    b.result(op, b.node("Concat", names, axis=axis))


@reads("GATHER")
def gather(b: Builder, op: Any) -> None:
    """Gather by index, as embeddings do."""
    if getattr(op.builtinOptions, "batchDims", 0):
        raise CannotReadError("batch axes")
    b.result(op, b.node("Gather", [b.input(op, 0), b.input(op, 1)], axis=int(op.builtinOptions.axis)))


@reads("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
def resize(b: Builder, op: Any) -> None:
    """A resize of images, with ONNX's coordinate mode for LiteRT's options."""
    options, linear = op.builtinOptions, b.kind(op) == "RESIZE_BILINEAR"
    coordinates = (
        "half_pixel" if options.halfPixelCenters else "align_corners" if options.alignCorners else "asymmetric"
    )
    n, height, width, channels = b.shape(op.outputs[0])
    attributes = {"mode": "linear" if linear else "nearest", "coordinate_transformation_mode": coordinates}
    names = [b.channel_first(b.input(op, 0)), "", "", b.ints(n, channels, height, width)]
    if not linear:
        attributes["nearest_mode"] = "floor" if coordinates == "asymmetric" else "round_prefer_ceil"
    b.result(op, b.channel_last(b.node("Resize", names, **attributes)))
