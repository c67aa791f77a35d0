"""Rewrites the attention operators that ONNX Runtime's optimizer for transformers writes (com.microsoft).

`Attention` and `MultiHeadAttention` become the matrix products, the mask and the softmax that they stand for, and
`EmbedLayerNormalization` becomes gathers, sums and a norm. Forms with keys of earlier calls have no standard form here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from converters.frontends.onnx.nodes import attribute_of
from edgekit.tensors import Array

FILTERED = -10000.0  # ONNX Runtime's default for scores that a mask hides
LEAST_OPSET = 13  # Softmax over one axis, sizes as inputs


class Writer(Protocol):
    """What the rewriting of one model offers; see `contrib.py`."""

    opset: int

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str: ...  # noqa: D102
    def number(self, value: float) -> str: ...  # noqa: D102
    def constant(self, value: Array) -> str: ...  # noqa: D102
    def value(self, tensor: str) -> Array | None: ...  # noqa: D102
    def width(self, tensor: str) -> int | None: ...  # noqa: D102
    def rank(self, tensor: str, node: Any) -> int: ...  # noqa: D102
    def refusal(self, node: Any, why: str) -> Exception: ...  # noqa: D102


class _Heads(NamedTuple):
    """Projected queries, keys and values (batch, length, width) and what is done with their scores."""

    query: str
    key: str
    value: str
    width: int | None  # of the queries; None where the file does not say
    mask: str = ""  # (batch, keys), (batch, queries, keys), or lengths (batch,)
    bias: str = ""  # added to the scores (batch or 1, heads or 1, queries, keys)


def attention(writer: Writer, node: Any) -> None:
    """Rewrite `Attention`: one projection of one input to queries, keys and values."""
    inputs = _optional(node, 6)
    _require_plain(writer, node, past=inputs[4:5], names=("do_rotary",))
    weights, bias = writer.value(inputs[1]), writer.value(inputs[2]) if inputs[2] else None
    if weights is None or (inputs[2] and bias is None):
        raise writer.refusal(node, "its weights are computed")
    sizes = list(attribute_of(node, "qkv_hidden_sizes", [])) or [weights.shape[1] // 3] * 3
    ends = np.cumsum(sizes)[:2]
    parts = []
    biases = np.split(bias, ends) if bias is not None else [None] * 3
    for part, added in zip(np.split(weights, ends, axis=1), biases, strict=True):
        made = writer.add("MatMul", [inputs[0], writer.constant(part)])
        parts.append(made if added is None else writer.add("Add", [made, writer.constant(added)]))
    _attend(writer, node, _Heads(parts[0], parts[1], parts[2], sizes[0], inputs[3], inputs[5]))


def multi_head_attention(writer: Writer, node: Any) -> None:
    """Rewrite `MultiHeadAttention`: queries, keys and values that are projected already."""
    inputs = _optional(node, 8)
    _require_plain(writer, node, past=inputs[6:8])
    if not (inputs[1] and inputs[2]) or any(writer.rank(name, node) != 3 for name in inputs[:3]):
        raise writer.refusal(node, "its queries, keys and values are not three tensors of three axes")
    parts, width = inputs[:3], writer.width(inputs[0])
    if inputs[3]:
        bias = writer.value(inputs[3])
        if bias is None or bias.size % 3:
            raise writer.refusal(node, "its bias is computed, or values have another width than keys")
        width = bias.size // 3
        parts = [
            writer.add("Add", [part, writer.constant(added)])
            for part, added in zip(parts, np.split(bias, 3), strict=True)
        ]
    _attend(writer, node, _Heads(parts[0], parts[1], parts[2], width, inputs[4], inputs[5]))


def embed_layer_normalization(writer: Writer, node: Any) -> tuple[str, str, str, float]:
    """Rewrite `EmbedLayerNormalization` up to its norm: the sum of embeddings, scale, bias and epsilon of that norm."""
    ids, segments, words, places, kinds, scale, bias, mask, positions = _optional(node, 9)
    if writer.opset < LEAST_OPSET:
        raise writer.refusal(node, f"the operator set is older than {LEAST_OPSET}")
    sums = node.output[2] if len(node.output) > 2 else ""
    if positions:
        place = writer.add("Gather", [places, positions])
    else:
        sizes = writer.add("Shape", [ids])
        length = writer.add("Slice", [sizes, _whole(writer, [1]), _whole(writer, [2])])
        place = writer.add("Slice", [places, _whole(writer, [0]), length, _whole(writer, [0])])
    total = writer.add("Add", [writer.add("Gather", [words, ids]), place], "" if segments else sums)
    if segments:
        total = writer.add("Add", [total, writer.add("Gather", [kinds, segments])], sums)
    if len(node.output) > 1 and node.output[1] and mask:
        writer.add("ReduceSum", [mask, _whole(writer, [1])], node.output[1], keepdims=0)  # lengths
    return total, scale, bias, float(attribute_of(node, "epsilon", 1e-12))


def _optional(node: Any, count: int) -> list[str]:
    return [*node.input, *[""] * count][:count]


def _whole(writer: Writer, values: list[int]) -> str:
    return writer.constant(np.array(values, np.int64))


def _require_plain(writer: Writer, node: Any, *, past: list[str], names: tuple[str, ...] = ()) -> None:
    if any(past) or any(node.output[1:]):
        raise writer.refusal(node, "it keeps keys and values of earlier calls, or gives its scores")
    if any(attribute_of(node, name, 0) for name in names):
        raise writer.refusal(node, "it rotates queries and keys")
    if writer.opset < LEAST_OPSET:
        raise writer.refusal(node, f"the operator set is older than {LEAST_OPSET}")


def _attend(writer: Writer, node: Any, parts: _Heads) -> None:
    """softmax(scale Q K^T + mask) V for each head, and the heads side by side."""
    heads = int(attribute_of(node, "num_heads", 0))
    scale = float(attribute_of(node, "scale", 0.0))
    shape = _whole(writer, [0, 0, heads, -1])
    query, key, value = (
        writer.add("Transpose", [writer.add("Reshape", [part, shape])], perm=perm)
        for part, perm in zip(parts[:3], ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    if scale == 0.0 and parts.width is None:
        raise writer.refusal(node, "the width of its queries is not known")
    factor = scale or 1.0 / math.sqrt((parts.width or heads) / heads)
    scores = writer.add("Mul", [writer.add("MatMul", [query, key]), writer.number(factor)])
    if parts.mask:
        scores = writer.add("Add", [scores, _mask(writer, node, parts.mask, scores)])
    if parts.bias:
        scores = writer.add("Add", [scores, parts.bias])
    if attribute_of(node, "unidirectional", 0):
        scores = writer.add("Add", [scores, _causal(writer, scores)])
    weights = writer.add("Softmax", [scores], axis=-1)
    joined = writer.add("Transpose", [writer.add("MatMul", [weights, value])], perm=[0, 2, 1, 3])
    writer.add("Reshape", [joined, _whole(writer, [0, 0, -1])], node.output[0])


def _mask(writer: Writer, node: Any, mask: str, scores: str) -> str:
    """What a mask adds to the scores: 0 where it is 1, and a large negative number where it is 0."""
    rank = writer.rank(mask, node)
    if rank not in (1, 2, 3):
        raise writer.refusal(node, f"its mask has {rank} axes")
    if rank == 1:  # lengths: keys from there on are hidden
        sizes = writer.add("Shape", [scores])
        keys = writer.add("Slice", [sizes, _whole(writer, [3]), _whole(writer, [4])])
        ones = writer.add("Expand", [_whole(writer, [1]), keys])
        numbers = writer.add("CumSum", [ones, writer.constant(np.array(0, np.int64))])
        lengths = writer.add("Cast", [writer.add("Reshape", [mask, _whole(writer, [-1, 1])])], to=7)
        mask = writer.add("LessOrEqual", [numbers, lengths])
    mask = writer.add("Unsqueeze", [mask, _whole(writer, [1] if rank == 3 else [1, 2])])
    seen = writer.add("Cast", [mask], to=1)
    hidden = writer.add("Sub", [writer.number(1.0), seen])
    return writer.add("Mul", [hidden, writer.number(float(attribute_of(node, "mask_filter_value", FILTERED)))])


def _causal(writer: Writer, scores: str) -> str:
    """A large negative number (queries, keys) for each key behind its query."""
    sizes = writer.add("Shape", [scores])
    last = writer.add("Slice", [sizes, _whole(writer, [2]), _whole(writer, [4])])
    full = writer.add("Expand", [writer.number(FILTERED), last])
    return writer.add("Trilu", [full, writer.constant(np.array(1, np.int64))], upper=1)
