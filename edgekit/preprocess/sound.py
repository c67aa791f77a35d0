"""Features of sounds: WAV bytes to samples, samples to log-mel energies and cepstra. Sums are in float64."""

from __future__ import annotations

import functools

import numpy as np

from edgekit.errors import DataError
from edgekit.tensors import Array

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


def decode_wav(data: bytes, sample_rate: int, max_samples: int) -> Array:
    """Decode a RIFF WAVE file to samples (n,) float32 from -1 to 1; several channels are averaged.

    Supports integers of 8, 16, 24 and 32 bits and floats of 32 bits. A data chunk longer than the file, from a writer
    that did not know the length, is read to the end of the file.

    Raises:
        DataError: The bytes are no such file, or it has another sample rate or more than `max_samples` samples.
    """
    header, body = _chunks(data)
    kind, channels, rate = (int.from_bytes(header[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8)))
    bits = int.from_bytes(header[14:16], "little")
    if kind == _EXTENSIBLE and len(header) >= 26:
        kind = int.from_bytes(header[24:26], "little")
    if rate != sample_rate:
        raise DataError(f"the sound has {rate} samples per second, the model takes {sample_rate}")
    if (kind, bits) not in ((_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32)) or channels < 1:
        raise DataError(
            f"the sound is WAVE format {kind} with {bits} bits in {channels} channels, "
            "expected integers of 8, 16, 24 or 32 bits or floats of 32"
        )
    size = bits // 8 * channels
    count = len(body) // size
    if count > max_samples:
        raise DataError(f"the sound has {count} samples, the limit is {max_samples}")
    samples = _samples(body[: count * size], kind, bits).reshape(count, channels)
    if not np.isfinite(samples).all():
        raise DataError("the sound contains NaN or infinity")
    mixed: Array = samples[:, 0] if channels == 1 else samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    return mixed


def fit_length(samples: Array, length: int) -> Array:
    """The first `length` of `samples` (n,), padded with silence if there are fewer."""
    if len(samples) >= length:
        return samples[:length]
    return np.pad(samples, (0, length - len(samples)))


def frame_count(samples: int, frame_length: int, frame_step: int) -> int:
    """Number of whole frames in `samples`."""
    return max(0, 1 + (samples - frame_length) // frame_step)


def log_mel(
    samples: Array,
    *,
    sample_rate: int,
    frame_length: int,
    frame_step: int,
    fft_length: int,
    mels: int,
    low_hz: float,
    high_hz: float,
    power: int,
    offset: float,
) -> Array:
    """ln(mel energies + offset) as (frames, mels) float32.

    It uses a periodic Hann window, frames without padding, |FFT| ** power, and triangles on the HTK mel scale
    (2595 log10(1 + f/700)) with a peak of one and without the constant component, as tf.signal.stft and
    linear_to_mel_weight_matrix do.
    """
    count = frame_count(len(samples), frame_length, frame_step)
    if count == 0:
        return np.zeros((0, mels), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), frame_length)[::frame_step]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame_length) / frame_length)
    spectrum = np.abs(np.fft.rfft(frames * window, fft_length)) ** power
    energies = spectrum @ mel_matrix(sample_rate, fft_length, mels, low_hz, high_hz)
    log_energies: Array = np.log(energies + offset).astype(np.float32)
    return log_energies


def cepstra(energies: Array, coefficients: int) -> Array:
    """The first `coefficients` of the DCT-II of log energies (frames, mels), scaled by 1/sqrt(2 mels) as HTK does."""
    mels = energies.shape[1]
    angles = np.pi / mels * (np.arange(mels)[:, None] + 0.5) * np.arange(coefficients)[None, :]
    result: Array = (energies.astype(np.float64) @ (2 * np.cos(angles)) / np.sqrt(2 * mels)).astype(np.float32)
    return result


@functools.lru_cache(maxsize=8)
def mel_matrix(sample_rate: int, fft_length: int, mels: int, low_hz: float, high_hz: float) -> Array:
    """Weights (fft_length // 2 + 1, mels) float64 of each frequency in each mel band."""
    frequencies = _mel(np.linspace(0.0, sample_rate / 2, fft_length // 2 + 1))[:, None]
    edges = np.linspace(_mel(np.float64(low_hz)), _mel(np.float64(high_hz)), mels + 2)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0.0, np.minimum((frequencies - low) / (center - low), (high - frequencies) / (high - center)))
    weights[0] = 0.0
    return weights


def _mel(hz: Array) -> Array:
    mel: Array = 2595.0 * np.log10(1.0 + hz / 700.0)
    return mel


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    """The format chunk and the data chunk."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise DataError("the bytes are not a WAVE sound (they do not begin with RIFF and WAVE)")
    header, offset = b"", 12
    while offset + 8 <= len(data):
        name, size = data[offset : offset + 4], int.from_bytes(data[offset + 4 : offset + 8], "little")
        body = data[offset + 8 : offset + 8 + size]
        if name == b"fmt ":
            header = body
        if name == b"data" and len(header) >= 16:
            return header, body
        offset += 8 + size + size % 2
    raise DataError("the sound has no format chunk, or no data chunk after it")


def _samples(body: bytes, kind: int, bits: int) -> Array:
    if kind == _FLOAT:
        return np.frombuffer(body, "<f4").astype(np.float32)
    if bits == 8:
        return (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:
        parts = np.frombuffer(body, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(parts), 4), np.uint8)
        wide[:, 1:] = parts  # the sign is in the highest byte
        body, bits = wide.tobytes(), 32
    scaled: Array = np.frombuffer(body, f"<i{bits // 8}").astype(np.float32) / np.float32(2 ** (bits - 1))
    return scaled
