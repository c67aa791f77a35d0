"""Widens scales of static int8 weights whose biases would not fit 32 bits.

A bias is a 32-bit integer; its scale is the input's scale times the weights' scale. Where the weights of a channel are
millionths of its bias, as behind a batch normalization that nearly switched the channel off, the integer does not fit
32 bits. The quantizer then saturates it, and the channel's answers are wrong. A wider scale of such weights lets the
bias fit. The loss is too small for 8-bit activations: each weight is off by half a step, so the largest input, 255
steps, changes the channel by 2^-23 of its bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from converters.backends.tflite.reader import TFLITE_WEIGHTED, TYPES, buffer_content, operator_name, parse_tflite
from edgekit.errors import ConversionError
from edgekit.tensors import Array

MAX_BIAS = 2.0**30  # half the range of 32 bits; the other half is for the sum that the bias is added to
ROUNDING = 1.001  # tolerance, because scales are float32
LEVELS_BY_PRECISION = {"int8": 127, "int4": 7}
Ranges = dict[str, dict[str, Array]]


class _Layer(msgspec.Struct, frozen=True):
    """An operator with integer weights and a 32-bit bias. `name` and `buffer` are of its weights in the float file."""

    name: str
    buffer: int
    levels: int
    largest: Array  # largest weight per channel, with the weights' rank; (1, ...) where one scale serves all channels
    scales: Array  # scales of the weights, (O,) or (1,)
    needed: Array  # smallest scales at which the bias fits, of the same shape


def wider_weights(before: bytes, after: bytes) -> Ranges:
    """Ranges of weights whose biases saturate, in litert-quantizer's form; empty where no bias saturates.

    Args:
        before: The float .tflite.
        after: The static int8 file that the quantizer made of it.

    Returns:
        Smallest and largest value of each channel, by the weights' name in `before`: float32, of the weights' rank. All
        names of one buffer have equal ranges, because the quantizer rounds a buffer once.

    Raises:
        ConversionError: the two files have different operators with weights.
    """
    layers = list(_layers(before, after))
    widest: dict[int, Array] = {}
    for layer in layers:
        widest[layer.buffer] = np.maximum(widest.get(layer.buffer, layer.scales), layer.needed)
    ranges = {}
    for layer in layers:
        if np.any(widest[layer.buffer] > layer.scales):
            wide = (widest[layer.buffer] * layer.levels).astype(np.float32).reshape(layer.largest.shape)
            wider = (widest[layer.buffer] > layer.scales).reshape(layer.largest.shape)
            reach = np.where(wider, wide, layer.largest)  # so that other channels keep their scales bit by bit
            ranges[layer.name] = {"min": -reach, "max": reach}
    return ranges


def require_biases(before: bytes, after: bytes) -> None:
    """Check that every 32-bit bias holds its value.

    Raises:
        ConversionError: a bias saturates; the message counts the channels of each layer.
    """
    wrong = [
        f"{int(np.sum(layer.needed > layer.scales * ROUNDING))} channels of {layer.name}"
        for layer in _layers(before, after)
        if np.any(layer.needed > layer.scales * ROUNDING)
    ]
    if wrong:
        raise ConversionError(
            f"biases do not fit 32 bits, although the scales of their weights were widened: {', '.join(wrong)}"
        )


def _layers(before: bytes, after: bytes) -> Iterator[_Layer]:
    floats, integers = _weighted(before), _weighted(after)
    if [op.operator for op in floats] != [op.operator for op in integers]:
        raise ConversionError(
            f"{len(integers)} operators with weights are in the quantized file, expected the float file's {len(floats)}"
        )
    for given, made in zip(floats, integers, strict=True):
        if not made.bias or made.bias_type != "int32" or not given.content:  # computed weights have no channels
            continue
        quantization = made.weights.quantization
        scales = np.asarray(quantization.scale, np.float64)
        weights = np.abs(np.frombuffer(given.content, np.float32).reshape(given.weights.shape))
        others = tuple(
            axis for axis in range(weights.ndim) if len(scales) == 1 or axis != quantization.quantizedDimension
        )
        least = np.abs(np.frombuffer(given.bias, np.float32).astype(np.float64)) / (made.scale * MAX_BIAS)
        yield _Layer(
            name=given.weights.name.decode(),
            buffer=given.weights.buffer,
            levels=LEVELS_BY_PRECISION[TYPES[made.weights.type]],
            largest=weights.max(axis=others, keepdims=True),
            scales=scales,
            needed=least if len(scales) > 1 else least.max(keepdims=True),
        )


class _Op(msgspec.Struct, frozen=True):
    """An operator with weights: their tensor and content, its bias (empty without one), and the scale of its input."""

    operator: str
    weights: Any
    content: bytes
    bias: bytes
    bias_type: str
    scale: float  # 0 where the input is float


def _weighted(data: bytes) -> list[_Op]:
    model = parse_tflite(data)
    tensors = model.subgraphs[0].tensors
    operators = []
    for operator in model.subgraphs[0].operators:
        name = operator_name(model, operator)
        if name not in TFLITE_WEIGHTED:
            continue
        transposed = name == "TRANSPOSE_CONV"  # its first input is a shape
        given, position = operator.inputs[2 if transposed else 0], 3 if transposed else 2
        has_bias = len(operator.inputs) > position and operator.inputs[position] >= 0
        bias = tensors[operator.inputs[position]] if has_bias else None
        weights, quantization = tensors[operator.inputs[1]], tensors[given].quantization
        scaled = quantization is not None and quantization.scale is not None and len(quantization.scale) > 0
        operators.append(
            _Op(
                operator=name,
                weights=weights,
                content=buffer_content(model.buffers[weights.buffer], data),
                bias=buffer_content(model.buffers[bias.buffer], data) if bias is not None else b"",
                bias_type=TYPES[bias.type] if bias is not None else "",
                scale=float(quantization.scale[0]) if scaled else 0.0,
            )
        )
    return operators
