"""Steps before the model for sounds."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

from typing import Literal

import msgspec

from edgekit.errors import DataError
from edgekit.preprocess import sound
from edgekit.preprocess.steps import BYTES, ProcessingStep, SampleType, Tools, require, require_sizes
from edgekit.tensors import Array, DType

MAX_SECONDS = 3600.0


class DecodeWav(ProcessingStep, frozen=True, tag="decode-wav"):
    """Decode WAV bytes to samples (n,) float32 from -1 to 1; channels are averaged.

    Attributes:
        sample_rate: Sample rate in Hz. A sound with another one is refused and not resampled.
        max_seconds: Longer sounds are refused.
    """

    sample_rate: int
    max_seconds: float = 60.0

    def output_type(self, source: SampleType) -> SampleType:
        """Any number of float32 samples."""
        require(self, source == BYTES, source, "bytes")
        if not 1 <= self.sample_rate <= 768_000 or not 0 < self.max_seconds <= MAX_SECONDS:
            raise DataError(
                f"{self.name}: sample_rate is {self.sample_rate} and max_seconds {self.max_seconds:g}, expected 1 to "
                f"768000 and above 0 to {MAX_SECONDS:g}"
            )
        return SampleType(DType.FLOAT32, (None,))

    def apply(self, value: bytes, tools: Tools) -> Array:
        """Decode."""
        return sound.decode_wav(value, self.sample_rate, int(self.sample_rate * self.max_seconds))


class FitLength(ProcessingStep, frozen=True, tag="fit-length"):
    """The first `samples` of a sound; a shorter sound is padded with silence."""

    samples: int

    def output_type(self, source: SampleType) -> SampleType:
        """Exactly `samples` samples."""
        require(self, source != BYTES and len(source.shape) == 1, source, "samples")
        if not 1 <= self.samples <= 2**26:
            raise DataError(f"{self.name}: samples is {self.samples}, expected 1 to {2**26}")
        return SampleType(source.dtype, (self.samples,))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Cut or pad."""
        return sound.fit_length(value, self.samples)


class LogMel(ProcessingStep, frozen=True, tag="log-mel"):
    """Compute ln(mel energies + offset), (frames, mels); `edgekit.preprocess.sound.log_mel` has the formulas.

    Attributes:
        sample_rate: Sample rate in Hz.
        frame_length, frame_step, fft_length: Sizes in samples.
        mels: Number of mel bands.
        low_hz, high_hz: Lower and upper limit of the bands in Hz.
        power: Exponent of the spectrum's magnitude: 1 or 2.
        offset: Added before the logarithm.
    """

    sample_rate: int
    frame_length: int
    frame_step: int
    fft_length: int
    mels: int = 40
    low_hz: float = 20.0
    high_hz: float = 4000.0
    power: Literal[1, 2] = 1
    offset: float = 1e-6

    def output_type(self, source: SampleType) -> SampleType:
        """As many whole frames as fit."""
        require(self, source.dtype is DType.FLOAT32 and len(source.shape) == 1, source, "float32 samples")
        require_sizes(
            self,
            frame_length=self.frame_length,
            frame_step=self.frame_step,
            fft_length=self.fft_length,
            mels=self.mels,
        )
        if self.frame_length > self.fft_length:
            raise DataError(
                f"{self.name}: frame_length is {self.frame_length}, expected at most fft_length ({self.fft_length})"
            )
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2 or not self.offset > 0:
            raise DataError(
                f"{self.name}: low_hz {self.low_hz:g}, high_hz {self.high_hz:g} and offset {self.offset:g}, expected "
                f"0 <= low_hz < high_hz <= {self.sample_rate / 2:g} and an offset above 0"
            )
        samples = source.shape[0]
        frames = None if samples is None else sound.frame_count(samples, self.frame_length, self.frame_step)
        return SampleType(DType.FLOAT32, (frames, self.mels))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Compute."""
        return sound.log_mel(value, **msgspec.structs.asdict(self))


class Cepstra(ProcessingStep, frozen=True, tag="mfcc"):
    """Compute the first `coefficients` cepstra of log-mel energies; the step must follow log-mel."""

    coefficients: int = 13

    def output_type(self, source: SampleType) -> SampleType:
        """(frames, coefficients)."""
        require(self, source.dtype is DType.FLOAT32 and len(source.shape) == 2, source, "log-mel energies")
        if not 1 <= self.coefficients <= (source.shape[1] or 0):
            raise DataError(f"{self.name}: coefficients is {self.coefficients}, expected 1 to {source.shape[1]}")
        return SampleType(DType.FLOAT32, (source.shape[0], self.coefficients))

    def apply(self, value: Array, tools: Tools) -> Array:
        """Compute."""
        return sound.cepstra(value, self.coefficients)
