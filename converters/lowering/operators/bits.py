"""Operators on the bits of whole numbers.

LiteRT has an exclusive or of 32 bits, and no other operator on bits that all of its types have. So numbers are taken
apart into parts of 16 bits, which int32 holds, and put together again. Every step is exact: a float32 holds 16 bits
times a power of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, required
from converters.lowering.values import Value, aligned

PART = 16  # bits of a part
# TensorFlow's type that carries an unsigned type of ONNX which LiteRT lacks, by the number of its bits. 64 bits are
# carried as they are: numbers of 2**63 and more look negative.
CARRIERS = {16: tf.int32, 32: tf.int64, 64: tf.int64}


def bits_of(value: Value) -> int:
    """Number of bits of the whole numbers in `value`."""
    return value.unsigned or int(tf.as_dtype(value.tensor.dtype).size) * 8


def carried(array: Any) -> Value:
    """A constant of an unsigned type that LiteRT lacks in the type that carries it; any other constant as it is."""
    order = tuple(range(array.ndim))
    if array.dtype.kind != "u" or array.dtype.itemsize == 1:
        return Value(array, order)
    bits = array.dtype.itemsize * 8
    wide = array.view(np.int64) if bits == 64 else array.astype(CARRIERS[bits].as_numpy_dtype)
    return Value(wide, order, unsigned=bits)


def uncarried(value: Value) -> Any:
    """The array of a constant in its own type, in logical order: the reverse of `carried`."""
    array = value.plain()
    return array.astype(f"uint{value.unsigned}") if value.unsigned else array


def wrapped(value: Value, bits: int) -> Any:
    """The tensor of `value`, whole numbers, cast to unsigned ones of `bits`, in their carrier."""
    tensor = tf.cast(value.tensor, tf.int64)
    return tf.cast(tensor if bits == 64 else tf.math.floormod(tensor, tf.constant(2**bits, tf.int64)), CARRIERS[bits])


def _parts(tensor: Any, bits: int, unsigned: bool) -> list[Any]:
    """The parts of numbers of `bits`, the lowest first, as int32; the highest part has the sign."""
    if bits <= PART:
        return [tf.cast(tensor, tf.int32)]
    wide = tf.cast(tensor, tf.int64)
    ends = [*range(PART, bits, PART), None] if bits == 64 or not unsigned else list(range(PART, bits + 1, PART))
    parts, below = [], tf.zeros_like(wide)
    for place, end in enumerate(ends):
        upto = wide if end is None else tf.math.floormod(wide, tf.constant(2**end, tf.int64))
        parts.append(tf.cast(tf.cast(upto - below, tf.float32) * np.float32(2.0 ** (-PART * place)), tf.int32))
        below = upto
    return parts


def _joined(parts: list[Any], dtype: Any) -> Any:
    """The numbers of `parts`, the reverse of `_parts`."""
    if len(parts) == 1:
        return tf.cast(parts[0], dtype)
    wide = [tf.cast(part, tf.int64) * tf.constant(2 ** (PART * place), tf.int64) for place, part in enumerate(parts)]
    return tf.cast(tf.add_n(wide) if len(wide) > 2 else wide[0] + wide[1], dtype)


def _xor(left: Any, right: Any) -> Any:
    return tf.bitwise.bitwise_xor(left, right)


def _and(left: Any, right: Any) -> Any:
    return tf.math.floordiv(left + right - _xor(left, right), 2)


def _or(left: Any, right: Any) -> Any:
    return left + right - _and(left, right)


def _of_two(operator: str, function: Callable[[Any, Any], Any]) -> None:
    """Register an operator on the bits of two values, part by part."""

    def lowering(inputs: Inputs, attrs: dict[str, Any]) -> Value:
        values = [required(value) for value in inputs]
        (left, right), order = aligned(values)
        bits, unsigned = bits_of(values[0]), max(value.unsigned for value in values)
        dtype = tf.as_dtype(left.dtype)
        mask = right if isinstance(right, np.ndarray) else left
        if operator == "BitwiseAnd" and isinstance(mask, np.ndarray) and _is_low_bits(mask) and bits > 8:
            other = left if mask is right else right
            return Value(tf.math.floormod(other, tf.constant(mask + 1, dtype)), order, unsigned=unsigned)
        signs = bool(unsigned) or dtype.is_unsigned
        pairs = zip(_parts(left, bits, signs), _parts(right, bits, signs), strict=True)
        return Value(_joined([function(one, other) for one, other in pairs], dtype), order, unsigned=unsigned)

    lowers(operator)(lowering)


def _is_low_bits(mask: Any) -> bool:
    """True for a mask of the lowest bits only, which the rest of a division gives."""
    one = int(mask.ravel()[0]) if mask.size == 1 else -1
    return 0 < one < np.iinfo(mask.dtype).max and one & (one + 1) == 0


_of_two("BitwiseAnd", _and)
_of_two("BitwiseOr", _or)
_of_two("BitwiseXor", _xor)


@lowers("BitwiseNot")
def bitwise_not(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """All bits turned over."""
    source = required(inputs[0])
    bits, dtype = bits_of(source), tf.as_dtype(source.tensor.dtype)
    highest = 2**bits - 1 if (source.unsigned and bits < 64) or dtype.is_unsigned else -1
    wide = tf.cast(source.tensor, tf.int32) if bits <= PART else source.tensor
    return Value(tf.cast(tf.constant(highest, wide.dtype) - wide, dtype), source.order, unsigned=source.unsigned)


@lowers("BitShift")
def bit_shift(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """A shift of unsigned numbers by a constant number of bits, the same for all."""
    source = required(inputs[0])
    amounts = np.unique(constant(inputs[1], "number of bits"))
    bits, dtype = bits_of(source), tf.as_dtype(source.tensor.dtype)
    if len(amounts) != 1 or not 0 <= int(amounts[0]) < bits:
        raise CannotLowerError("a shift by different numbers of bits, or by as many as the numbers have")
    amount = int(amounts[0])
    if amount == 0:
        return source
    parts = _parts(source.tensor, bits, unsigned=True)
    if bits == 64:
        parts[-1] = tf.math.floormod(parts[-1], 2**PART)  # no sign
    moved = _right(parts, amount) if attrs.get("direction") in (b"RIGHT", "RIGHT") else _left(parts, amount)
    if bits < PART:
        moved = [tf.math.floormod(moved[0], 2**bits)]
    return Value(_joined(moved, dtype), source.order, unsigned=source.unsigned)


def _right(parts: list[Any], amount: int) -> list[Any]:
    """Parts without signs shifted to lower bits."""
    skipped, rest = divmod(amount, PART)
    kept = parts[skipped:]
    above = [*kept[1:], None]
    shifted = []
    for one, other in zip(kept, above, strict=True):
        low = tf.math.floordiv(one, 2**rest)
        high = 0 if other is None or rest == 0 else tf.math.floormod(other, 2**rest) * 2 ** (PART - rest)
        shifted.append(low + high)
    return shifted + [tf.zeros_like(parts[0]) for _ in range(skipped)]


def _left(parts: list[Any], amount: int) -> list[Any]:
    """Parts without signs shifted to higher bits; what leaves the highest part is lost."""
    skipped, rest = divmod(amount, PART)
    kept = parts[: len(parts) - skipped]
    below = [None, *kept[:-1]]
    shifted = []
    for one, other in zip(kept, below, strict=True):
        high = tf.math.floormod(one, 2 ** (PART - rest)) * 2**rest
        low = 0 if other is None or rest == 0 else tf.math.floordiv(other, 2 ** (PART - rest))
        shifted.append(high + low)
    return [tf.zeros_like(parts[0]) for _ in range(skipped)] + shifted
