"""Sound to features: all supported WAV formats, and energies that agree with TensorFlow."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.preprocess import sound

RATE = 16_000
MEL = {"frame_length": 400, "frame_step": 160, "fft_length": 512, "mels": 40, "low_hz": 20.0, "high_hz": 4000.0}


def wav(samples: np.ndarray, *, rate: int = RATE, width: int = 2, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def tone(count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (0.3 * np.sin(np.arange(count) * 0.2) + 0.05 * rng.standard_normal(count)).astype(np.float32)


def float_wav(samples: np.ndarray) -> bytes:
    header = struct.pack("<HHIIHH", 3, 1, RATE, RATE * 4, 4, 32)
    body = samples.astype("<f4").tobytes()
    chunks = b"fmt " + struct.pack("<I", 16) + header + b"LIST\x03\x00\x00\x00abc\x00"
    chunks += b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def test_16_bits_are_shares_of_32768() -> None:
    """The scale is that of tf.audio.decode_wav."""
    found = sound.decode_wav(wav(np.array([0, 16384, -32768, 32767], np.int16)), RATE, 100)
    np.testing.assert_array_equal(found, np.array([0, 0.5, -1, 32767 / 32768], np.float32))


def test_8_and_24_bits_and_floats_are_read() -> None:
    """The same wave in three formats, each to its precision; an odd chunk in between is skipped."""
    expected = tone(50)
    eight = np.rint(expected * 128 + 128).astype(np.uint8)
    np.testing.assert_allclose(sound.decode_wav(wav(eight, width=1), RATE, 50), expected, atol=1 / 200)
    wide = np.rint(expected * 2**23).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3]
    np.testing.assert_allclose(sound.decode_wav(wav(wide.copy(), width=3), RATE, 50), expected, atol=1e-6)
    np.testing.assert_array_equal(sound.decode_wav(float_wav(expected), RATE, 50), expected)


def test_channels_are_mixed() -> None:
    """Left and right are averaged."""
    stereo = np.array([[100, 300], [-200, -400]], np.int16)
    found = sound.decode_wav(wav(stereo, channels=2), RATE, 2)
    np.testing.assert_allclose(found * 32768, [200, -300])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a WAVE"),
        (b"RIFF\x00\x00\x00\x00WAVE", "no format"),
        (wav(np.zeros(4, np.int16), rate=8000), "8000 samples per second, the model takes 16000"),
        (wav(np.zeros(200, np.int16)), "200 samples, the limit is 100"),
        (float_wav(np.array([np.nan])), "NaN"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt \x00\x00\x00\x00data\x00\x00\x00\x00", "no format"),
        (b"RIFF\xff\xff\xff\xffWAVEjunk\xff\xff\xff\xff", "no format"),
    ],
)
def test_other_bytes_are_refused(data: bytes, says: str) -> None:
    """The error names what was found."""
    with pytest.raises(DataError, match=says):
        sound.decode_wav(data, RATE, 100)


def test_a_stream_of_unknown_length_is_read_to_its_end() -> None:
    """Pipes write a data chunk that declares more bytes than the file has."""
    data = wav(np.array([1, 2, 3], np.int16))
    at = data.index(b"data") + 4
    assert len(sound.decode_wav(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :], RATE, 10)) == 3


def test_energies_peak_where_the_tone_is() -> None:
    """A pure tone of 1 kHz is strongest in the band with the nearest centre."""
    samples = np.sin(2 * np.pi * 1000 * np.arange(8000) / RATE).astype(np.float32)
    found = sound.log_mel(samples, sample_rate=RATE, power=2, offset=1e-6, **MEL)
    edges = np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 4000 / 700), 42)
    assert found.shape == (48, 40)
    assert set(found.argmax(axis=1)) == {int(np.abs(edges[1:-1] - 2595 * np.log10(1 + 1000 / 700)).argmin())}


def test_too_short_a_sound_has_no_frames() -> None:
    """The result has no frames, but the right number of bands."""
    assert sound.log_mel(tone(399), sample_rate=RATE, power=1, offset=1e-6, **MEL).shape == (0, 40)


@pytest.mark.heavy
def test_energies_and_cepstra_are_tensorflows() -> None:
    """They agree with the usual steps in tf.signal."""
    tf = pytest.importorskip("tensorflow")
    samples = tone()
    spectrum = tf.abs(tf.signal.stft(samples, 400, 160, 512))
    matrix = tf.signal.linear_to_mel_weight_matrix(40, 257, RATE, 20.0, 4000.0)
    expected = tf.math.log(tf.tensordot(spectrum, matrix, 1) + 1e-6)
    found = sound.log_mel(samples, sample_rate=RATE, power=1, offset=1e-6, **MEL)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)
    cepstra = tf.signal.mfccs_from_log_mel_spectrograms(expected)[..., :13].numpy()
    np.testing.assert_allclose(sound.cepstra(found, 13), cepstra, atol=2e-4)
