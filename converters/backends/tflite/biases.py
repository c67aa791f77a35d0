"""Scales of static int8 weights that are wide enough for their biases.

A bias is a 32-bit integer, whose scale is the input's times the weights'. Where a channel's weights are millionths of
its bias, as behind a batch normalization that has nearly switched it off, the integer would be beyond 32 bits, and the
quantizer saturates it: the channel answers anything. A wider scale for such weights brings the bias back, and nothing
is lost that 8 bits of an activation could show: each weight is off by half a step, and an input as large as they get,
255 steps, then moves the channel by 2^-23 of its bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from converters.backends.tflite.reader import TYPES, WEIGHTED, buffer_content, operator_name, parse_tflite
from edgekit.errors import ConversionError
from edgekit.tensors import Array

LARGEST = 2.0**30  # half of what 32 bits hold: the other half is for the sum that a bias is added to
ROUNDED = 1.001  # scales are float32
LEVELS = {"int8": 127, "int4": 7}
Ranges = dict[str, dict[str, Array]]


class _Layer(msgspec.Struct, frozen=True):
    """One operator with integer weights and a 32-bit bias; its weights in the float file are `name` in `buffer`."""

    name: str
    buffer: int
    levels: int
    largest: Array  # weight of each channel, of the weights' rank; (1, ...) where they have one scale in all
    scales: Array  # of the weights, (O,) or (1,)
    needed: Array  # the smallest that its bias allows, of the same shape


def wider_weights(before: bytes, after: bytes) -> Ranges:
    """Ranges for weights whose biases saturate, as ai-edge-quantizer takes them; empty where none does.

    Args:
        before: The float .tflite.
        after: What the quantizer made of it in static int8.

    Returns:
        Smallest and largest value of each channel by the weights' name in `before`, float32 of the weights' rank. All
        names of one buffer have the same, since the quantizer rounds it once.

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
            reach = np.where(wider, wide, layer.largest)  # so that others keep their scales bit by bit
            ranges[layer.name] = {"min": -reach, "max": reach}
    return ranges


def require_biases(before: bytes, after: bytes) -> None:
    """Check that every 32-bit bias holds its value.

    Raises:
        ConversionError: one saturates; says how many of which layer.
    """
    wrong = [
        f"{int(np.sum(layer.needed > layer.scales * ROUNDED))} channels of {layer.name}"
        for layer in _layers(before, after)
        if np.any(layer.needed > layer.scales * ROUNDED)
    ]
    if wrong:
        raise ConversionError(f"biases beyond 32 bits, expected wider scales of their weights: {', '.join(wrong)}")


def _layers(before: bytes, after: bytes) -> Iterator[_Layer]:
    floats, integers = _weighted(before), _weighted(after)
    if [op.operator for op in floats] != [op.operator for op in integers]:
        raise ConversionError(
            f"{len(integers)} operators with weights are in the quantized file, expected the float file's {len(floats)}"
        )
    for given, made in zip(floats, integers, strict=True):
        if (
            not made.bias or made.bias_type != "int32" or not given.content
        ):  # weights that are computed have no channels
            continue
        quantization = made.weights.quantization
        scales = np.asarray(quantization.scale, np.float64)
        weights = np.abs(np.frombuffer(given.content, np.float32).reshape(given.weights.shape))
        others = tuple(
            axis for axis in range(weights.ndim) if len(scales) == 1 or axis != quantization.quantizedDimension
        )
        least = np.abs(np.frombuffer(given.bias, np.float32).astype(np.float64)) / (made.scale * LARGEST)
        yield _Layer(
            name=given.weights.name.decode(),
            buffer=given.weights.buffer,
            levels=LEVELS[TYPES[made.weights.type]],
            largest=weights.max(axis=others, keepdims=True),
            scales=scales,
            needed=least if len(scales) > 1 else least.max(keepdims=True),
        )


class _Op(msgspec.Struct, frozen=True):
    """An operator with weights: their tensor and content, its bias, empty for none, and the scale of its input."""

    operator: str
    weights: Any
    content: bytes
    bias: bytes
    bias_type: str
    scale: float  # 0 where the input is float


def _weighted(data: bytes) -> list[_Op]:
    model = parse_tflite(data)
    tensors = model.subgraphs[0].tensors
    found = []
    for operator in model.subgraphs[0].operators:
        name = operator_name(model, operator)
        if name not in WEIGHTED:
            continue
        transposed = name == "TRANSPOSE_CONV"  # whose first input is a shape
        given, place = operator.inputs[2 if transposed else 0], 3 if transposed else 2
        bias = tensors[operator.inputs[place]] if len(operator.inputs) > place and operator.inputs[place] >= 0 else None
        weights, quantization = tensors[operator.inputs[1]], tensors[given].quantization
        scaled = quantization is not None and quantization.scale is not None and len(quantization.scale) > 0
        found.append(
            _Op(
                operator=name,
                weights=weights,
                content=buffer_content(model.buffers[weights.buffer], data),
                bias=buffer_content(model.buffers[bias.buffer], data) if bias is not None else b"",
                bias_type=TYPES[bias.type] if bias is not None else "",
                scale=float(quantization.scale[0]) if scaled else 0.0,
            )
        )
    return found
