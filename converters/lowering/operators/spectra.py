"""Fourier transforms of fixed length, from products with small matrices, which LiteRT runs everywhere.

X[k] = sum over n of x[n] * exp(-2 pi i k n / N); the inverse has the other sign and is divided by N. With N = A * B,
n = B n1 + n2 and k = k1 + A k2, the sum over n1 is made first, then turned by exp(-2 pi i n2 k1 / N), then summed over
n2 (Cooley and Tukey 1965). That is smaller, faster and nearly as exact as ONNX Runtime's own transform; one matrix for
all N has three times its error.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, isqrt
from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value, of

Parts = tuple[Any, Any]  # real and imaginary parts; None for no imaginary part


@lowers("STFT")
def stft(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """STFT of a real signal (batch, samples[, 1]) with frames of fixed size; gives (batch, frames, bins, 2)."""
    signal = required(inputs[0])
    if signal.rank == 3 and signal.shape[2] != 1:
        raise CannotLowerError("the signal is complex (supported: real signals)")
    step, window = _whole(inputs[1], "frame_step"), _window(inputs)
    rows, samples = signal.shape[:2]
    frames = _frames(tf.reshape(signal.plain(), (rows, samples)), len(window), step)
    return of(_stacked(_transformed((frames * window, None), attrs["variable"]), bool(attrs.get("onesided", 1))))


@lowers("DFT")
def dft(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """DFT along one axis; the last axis holds real values, or real and imaginary parts."""
    signal = required(inputs[0])
    inverse, onesided = bool(attrs.get("inverse")), bool(attrs.get("onesided"))
    if inverse and onesided:
        raise CannotLowerError("it is an inverse and one-sided transform")
    last = optional(inputs, 2)  # the axis is an attribute before opset 20
    axis = (int(attrs.get("axis", 1)) if last is None else _whole(last, "axis")) % signal.rank
    if axis == signal.rank - 1:
        raise CannotLowerError("its axis is that of the real and imaginary parts")
    given = optional(inputs, 1)
    length = signal.shape[axis] if given is None else _whole(given, "dft_length")
    to_end = [*(place for place in range(signal.rank - 1) if place != axis), axis]
    parts = [_sized(tf.transpose(part, to_end), length) for part in tf.unstack(signal.plain(), axis=-1)]
    real, imaginary = parts if len(parts) == 2 else (parts[0], None)
    if inverse and imaginary is not None:  # the conjugate of the transform of the conjugate, divided by N
        imaginary = -imaginary
    found = _transformed((real, imaginary), attrs["variable"])
    result = _stacked((found[0] / length, -found[1] / length) if inverse else found, onesided)
    back = list(range(signal.rank - 2))
    back.insert(axis, signal.rank - 2)
    return of(tf.transpose(result, (*back, signal.rank - 1)))


def _whole(value: Value | None, what: str) -> int:
    return int(np.reshape(constant(value, what), ()))


def _window(inputs: Inputs) -> Any:
    """The window; ones where none is given."""
    given, length = optional(inputs, 2), optional(inputs, 3)
    size = None if length is None else _whole(length, "frame_length")
    if given is None:
        if size is None:
            raise CannotLowerError("neither a window nor frame_length is given")
        return np.ones(size, np.float32)
    window = np.asarray(constant(given, "the window"), np.float32)
    if size not in (None, len(window)):
        raise CannotLowerError(f"frame_length is {size}, and the window has {len(window)} values")
    return window


def _frames(signal: Any, size: int, step: int) -> Any:
    """Frames (rows, frames, size) of a signal (rows, samples), gathered in blocks as long as both numbers allow."""
    rows, samples = (int(number) for number in signal.shape)
    if samples < size:
        raise CannotLowerError(f"the signal has {samples} samples, and a frame has {size}")
    count, block = 1 + (samples - size) // step, gcd(size, step)
    blocks = tf.reshape(signal[:, : (count - 1) * step + size], (rows, -1, block))
    places = np.arange(count)[:, None] * (step // block) + np.arange(size // block)
    return tf.reshape(tf.gather(blocks, places.astype(np.int32), axis=1), (rows, count, size))


def _sized(tensor: Any, length: int) -> Any:
    """The last axis cut or filled with zeros to `length`."""
    missing = length - int(tensor.shape[-1])
    if missing <= 0:
        return tensor[..., :length]
    return tf.pad(tensor, [(0, 0)] * (len(tensor.shape) - 1) + [(0, missing)])


def _transformed(parts: Parts, variable: Callable[[Any], Any]) -> Parts:
    """The transform along the last axis."""
    shape = [int(size) for size in parts[0].shape]
    length = shape[-1]
    first = next(size for size in range(isqrt(length), 0, -1) if length % size == 0)
    second = length // first
    columns = [part if part is None else _swapped(tf.reshape(part, (-1, first, second))) for part in parts]
    found = _summed((columns[0], columns[1]), variable) if first > 1 else (columns[0], columns[1])
    turned = _turned(found, *_circle(np.outer(np.arange(second), np.arange(first)), length))
    real, imaginary = _summed((_swapped(turned[0]), turned[1] if turned[1] is None else _swapped(turned[1])), variable)
    return tf.reshape(_swapped(real), shape), tf.reshape(_swapped(imaginary), shape)


def _swapped(tensor: Any) -> Any:
    return tf.transpose(tensor, (0, 2, 1))


def _summed(parts: Parts, variable: Callable[[Any], Any]) -> Parts:
    """The transform along the last axis by one matrix."""
    sizes = [int(size) for size in parts[0].shape]
    matrix = variable(np.concatenate(_circle(np.outer(*[np.arange(sizes[-1])] * 2), sizes[-1]), axis=1))

    def product(part: Any) -> list[Any]:
        both = tf.matmul(tf.reshape(part, (-1, sizes[-1])), matrix)
        return [tf.reshape(half, sizes) for half in tf.split(both, 2, axis=1)]

    real, imaginary = product(parts[0])
    if parts[1] is None:
        return real, imaginary
    turned, other = product(parts[1])
    return real - other, imaginary + turned


def _turned(parts: Parts, real: Any, imaginary: Any) -> Parts:
    """The parts times the complex numbers `real` + i `imaginary`."""
    if parts[1] is None:  # no sum was made: the length is a prime number, and all factors are 1
        return parts
    return parts[0] * real - parts[1] * imaginary, parts[0] * imaginary + parts[1] * real


def _circle(turns: Any, length: int) -> Parts:
    """exp(-2 pi i turns / length) as float32; whole turns are taken off first, which keeps digits."""
    angles = 2 * np.pi * (turns % length) / length
    return np.cos(angles).astype(np.float32), -np.sin(angles).astype(np.float32)


def _stacked(parts: Parts, onesided: bool) -> Any:
    bins = int(parts[0].shape[-1]) // 2 + 1 if onesided else None
    return tf.stack([part[..., :bins] for part in parts], axis=-1)
