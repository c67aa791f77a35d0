"""Fourier transforms of fixed length, as products with the matrix of cosines and sines, which LiteRT runs everywhere.

X[k] = sum over n of x[n] * exp(-2 pi i k n / N); the inverse has the other sign and is divided by N.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value, of


@lowers("STFT")
def stft(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """STFT of a real signal (batch, samples[, 1]) with a fixed frame: a convolution; gives (batch, frames, bins, 2)."""
    signal = required(inputs[0])
    if signal.rank == 3 and signal.shape[2] != 1:
        raise CannotLowerError("the signal is complex (supported: real signals)")
    step, window = int(np.reshape(constant(inputs[1], "frame_step"), ())), _window(inputs)
    cosines, sines = _matrices(len(window), len(window), _bins(len(window), bool(attrs.get("onesided", 1))))
    kernel = np.concatenate([cosines, -sines], axis=1) * window[:, None]
    rows, samples = signal.shape[:2]
    lines = tf.reshape(signal.plain(), (rows, 1, samples, 1))
    filters = attrs["variable"](kernel.astype(np.float32)[None, :, None])
    both = tf.nn.conv2d(lines, filters, (1, step), "VALID")  # (batch, 1, frames, 2 * bins)
    frames = int(both.shape[2])
    return of(tf.transpose(tf.reshape(both, (rows, frames, 2, kernel.shape[1] // 2)), (0, 1, 3, 2)))


def _window(inputs: Inputs) -> Any:
    """The window in float64; ones where none is given."""
    given, length = optional(inputs, 2), optional(inputs, 3)
    size = None if length is None else int(np.reshape(constant(length, "frame_length"), ()))
    if given is None:
        if size is None:
            raise CannotLowerError("neither a window nor frame_length is given")
        return np.ones(size)
    window = np.asarray(constant(given, "the window"), np.float64)
    if size not in (None, len(window)):
        raise CannotLowerError(f"frame_length is {size}, and the window has {len(window)} values")
    return window


@lowers("DFT")
def dft(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """DFT along one axis; the last axis holds real values, or real and imaginary parts."""
    signal = required(inputs[0])
    inverse, onesided = bool(attrs.get("inverse")), bool(attrs.get("onesided"))
    if inverse and onesided:
        raise CannotLowerError("it is an inverse and one-sided transform")
    last = optional(inputs, 2)  # the axis is an attribute before opset 20
    axis = int(attrs.get("axis", 1)) if last is None else int(np.reshape(constant(last, "axis"), ()))
    given = optional(inputs, 1)
    size = signal.shape[axis]
    length = size if given is None else int(np.reshape(constant(given, "dft_length"), ()))
    cosines, sines = _matrices(min(size, length), length, _bins(length, onesided))
    if inverse:
        cosines, sines = cosines / length, -sines / length
    real, imaginary = _turned(signal, axis, cosines, sines, attrs["variable"])
    order = list(range(signal.rank - 1))
    order.insert(axis % signal.rank, order.pop())
    return of(tf.stack([tf.transpose(real, order), tf.transpose(imaginary, order)], axis=-1))


def _turned(signal: Value, axis: int, cosines: Any, sines: Any, variable: Any) -> tuple[Any, Any]:
    """Real and imaginary part, the transformed axis last."""
    tensor, axis = signal.plain(), axis % signal.rank
    if axis == signal.rank - 1:
        raise CannotLowerError("its axis is that of the real and imaginary parts")
    order = [*(place for place in range(signal.rank - 1) if place != axis), axis]
    parts = [tf.transpose(part, order)[..., : len(cosines)] for part in tf.unstack(tensor, axis=-1)]
    cosine, sine = variable(cosines.astype(np.float32)), variable(sines.astype(np.float32))
    real, imaginary = _product(parts[0], cosine), -_product(parts[0], sine)
    if len(parts) == 1:
        return real, imaginary
    return real + _product(parts[1], sine), imaginary + _product(parts[1], cosine)


def _product(left: Any, right: Any) -> Any:
    sizes = [int(size) for size in left.shape]
    return tf.reshape(tf.matmul(tf.reshape(left, (-1, sizes[-1])), right), (*sizes[:-1], int(right.shape[1])))


def _bins(length: int, onesided: bool) -> int:
    return length // 2 + 1 if onesided else length


def _matrices(samples: int, length: int, bins: int) -> tuple[Any, Any]:
    """Cosines and sines of 2 pi k n / length, (samples, bins), in float64; k n is reduced first, which keeps digits."""
    angles = 2 * np.pi * (np.outer(np.arange(samples), np.arange(bins)) % length) / length
    return np.cos(angles), np.sin(angles)
