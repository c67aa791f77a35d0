"""The operators of transformers that newer operator sets have: Attention and rotary positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value, of

MASKED = -1e9  # added to masked scores: a softmax cannot tell it from minus infinity


@lowers("Attention")
def attention(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Attention over (batch, heads, length, size) or (batch, length, heads * size), with grouped heads and masks."""
    if optional(inputs, 4) is not None or optional(inputs, 6) is not None or attrs["outputs"] > 1:
        raise CannotLowerError("past keys and values, lengths without padding, or a second output")
    flat = required(inputs[0]).rank == 3
    counts = [attrs.get("q_num_heads"), attrs.get("kv_num_heads"), attrs.get("kv_num_heads")]
    query, key, value = (_heads(required(inputs[i]), count if flat else 0) for i, count in enumerate(counts))
    heads, size = int(query.shape[1]), int(query.shape[3])
    repeat = heads // int(key.shape[1])
    if repeat > 1:
        key, value = tf.repeat(key, repeat, axis=1), tf.repeat(value, repeat, axis=1)
    scores = tf.matmul(query, key, transpose_b=True) * np.float32(attrs.get("scale", size**-0.5))
    cap = float(attrs.get("softcap", 0.0))
    if cap:
        scores = tf.tanh(scores * np.float32(1 / cap)) * np.float32(cap)
    scores = _masked(scores, optional(inputs, 3), attrs)
    result = tf.matmul(tf.nn.softmax(scores, axis=-1), value)
    if not flat:
        return of(result)
    rows, heads, length, width = (int(size) for size in result.shape)
    return of(tf.reshape(tf.transpose(result, (0, 2, 1, 3)), (rows, length, heads * width)))


def _heads(value: Value, count: int | None) -> Any:
    if not count:
        return value.plain()
    rows, length, width = value.shape
    return tf.transpose(tf.reshape(value.plain(), (rows, length, count, width // count)), (0, 2, 1, 3))


def _masked(scores: Any, mask: Value | None, attrs: dict[str, Any]) -> Any:
    length, known = int(scores.shape[2]), int(scores.shape[3])
    if attrs.get("is_causal"):
        scores = scores + np.where(np.tri(length, known, dtype=bool), 0.0, MASKED).astype(np.float32)
    if mask is None:
        return scores
    added = mask.plain()
    if tf.as_dtype(added.dtype) == tf.bool:
        added = (1.0 - tf.cast(added, tf.float32)) * MASKED
    return scores + added


@lowers("RotaryEmbedding")
def rotary_embedding(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """RotaryEmbedding of (batch, heads, length, size) or (batch, length, heads * size)."""
    source, positions = required(inputs[0]), optional(inputs, 3)
    flat = source.rank == 3
    tensor = _heads(source, int(attrs["num_heads"])) if flat else source.plain()
    angles = []
    for table in (constant(inputs[1], "cosines"), constant(inputs[2], "sines")):
        rows = table if positions is None else tf.gather(table, positions.plain())
        angles.append(tf.expand_dims(rows, 1))  # (batch, 1, length, size / 2)
    half = 2 * int(angles[0].shape[-1])
    turned, rest = tensor[..., :half], tensor[..., half:]
    if attrs.get("interleaved"):
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., : half // 2], turned[..., half // 2 :]
    real = first * angles[0] - second * angles[1]
    imaginary = first * angles[1] + second * angles[0]
    if attrs.get("interleaved"):
        joined = tf.reshape(tf.stack([real, imaginary], axis=-1), turned.shape)
    else:
        joined = tf.concat([real, imaginary], axis=-1)
    result = tf.concat([joined, rest], axis=-1) if int(rest.shape[-1]) else joined
    if not flat:
        return of(result)
    return of(tf.reshape(tf.transpose(result, (0, 2, 1, 3)), source.shape))
