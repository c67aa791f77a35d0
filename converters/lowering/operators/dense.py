"""Matrix products: dense layers and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import Inputs, lowers, optional, required
from converters.lowering.values import Value, of


@lowers("Gemm")
def gemm(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Gemm; with constant weights, the usual case, it is a dense layer."""
    left, right = required(inputs[0]).plain(), required(inputs[1]).plain()
    scale = np.float32(attrs.get("alpha", 1.0))
    if isinstance(right, np.ndarray):
        right = np.ascontiguousarray(right.T if attrs.get("transB") else right) * scale
        result = tf.matmul(left, attrs["variable"](right), transpose_a=bool(attrs.get("transA")))
    else:
        result = tf.matmul(left, right, transpose_a=bool(attrs.get("transA")), transpose_b=bool(attrs.get("transB")))
        result = result if scale == 1 else result * scale
    bias = optional(inputs, 2)
    return of(result if bias is None else _biased(result, bias.plain(), np.float32(attrs.get("beta", 1.0))))


def _biased(result: Any, bias: Any, scale: np.float32) -> Any:
    width = int(result.shape[-1])
    if isinstance(bias, np.ndarray) and bias.size in (1, width):
        return tf.nn.bias_add(result, np.broadcast_to(bias.reshape(-1) * scale, (width,)).copy())
    return result + (bias if scale == 1 else bias * scale)


@lowers("MatMul")
def matmul(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """MatMul; with one constant matrix it is a dense layer over all rows."""
    first, second = required(inputs[0]), required(inputs[1])
    left, right = first.plain(), second.plain()
    if first.rank == 1:
        left = tf.reshape(left, (1, *first.shape))
    if second.rank == 1:
        right = tf.reshape(right, (*second.shape, 1))
    shape = [int(size) for size in left.shape]
    if isinstance(right, np.ndarray) and right.ndim == 2 and len(shape) > 2:
        flat = tf.matmul(tf.reshape(left, (-1, shape[-1])), attrs["variable"](right))
        result = tf.reshape(flat, (*shape[:-1], right.shape[1]))
    else:
        result = tf.matmul(left, attrs["variable"](right))
    added = [-2] * (first.rank == 1) + [-1] * (second.rank == 1)
    return of(tf.squeeze(result, added) if added else result)
