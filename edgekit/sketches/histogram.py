"""Histograms of a tensor's values. Bin widths are powers of two, so any two histograms merge exactly."""

from __future__ import annotations

import msgspec
import numpy as np

from edgekit.sketches.sketch import Sketch, made
from edgekit.tensors import Array

BINS = 2048
SMALLEST_RANGE = 2.0**-100  # largest magnitude assumed for a tensor that is always zero


class Histogram(msgspec.Struct, frozen=True):
    """Counts of one tensor's values in BINS bins around zero.

    Two histograms always have a common grid: the bins of the finer one are joined in pairs until the widths agree. The
    result equals one pass over all values, in any order of merging.

    Attributes:
        minimum, maximum: The exact extremes of the values.
        exponent: The bin width is 2 ** exponent; bin i covers (i - BINS / 2) to (i + 1 - BINS / 2) widths.
        counts: Values per bin, (BINS,) int64.
        zeros: Number of values that are exactly zero, for example after a Relu.
    """

    minimum: float
    maximum: float
    exponent: int
    counts: Array
    zeros: int = 0

    @classmethod
    def of(cls, values: Array) -> Histogram:
        """The histogram of all elements of `values`: at least one, all finite."""
        flat = np.asarray(values, dtype=np.float64).ravel()
        low, high = float(flat.min()), float(flat.max())
        exponent = _exponent(max(abs(low), abs(high), SMALLEST_RANGE))
        index = np.floor(flat * 2.0**-exponent).astype(np.int64) + BINS // 2
        counts = np.bincount(index, minlength=BINS).astype(np.int64)
        return cls(low, high, exponent, counts, len(flat) - int(np.count_nonzero(flat)))

    def merged(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values."""
        exponent = max(self.exponent, other.exponent)
        counts = self._counts_at(exponent) + other._counts_at(exponent)
        low, high = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        return Histogram(low, high, exponent, counts, self.zeros + other.zeros)

    def coarser(self, steps: int) -> Histogram:
        """The same counts in bins 2 ** `steps` times as wide; it still merges exactly with any other histogram."""
        exponent = self.exponent + steps
        return Histogram(self.minimum, self.maximum, exponent, self._counts_at(exponent), self.zeros)

    @property
    def edges(self) -> Array:
        """The lower edges of the bins and the upper edge of the last bin, (BINS + 1,)."""
        edges: Array = (np.arange(BINS + 1) - BINS // 2) * 2.0**self.exponent
        return edges

    @property
    def centres(self) -> Array:
        """The centre of each bin, (BINS,)."""
        centres: Array = (np.arange(BINS) - BINS // 2 + 0.5) * 2.0**self.exponent
        return centres

    def _counts_at(self, exponent: int) -> Array:
        counts = self.counts
        for _ in range(min(exponent - self.exponent, BINS.bit_length())):
            joined = counts.reshape(-1, 2).sum(axis=1)
            counts = np.zeros_like(counts)
            counts[BINS // 4 : BINS // 4 + BINS // 2] = joined
        return counts


def of_histogram(histogram: Histogram, samples: int) -> Sketch:
    """The sketch of a tensor's values, of which `samples` independent observations were made."""
    indexes = np.flatnonzero(histogram.counts)
    bins = {int(index) - BINS // 2: int(histogram.counts[index]) for index in indexes}
    return made(histogram.exponent, bins, (histogram.minimum, histogram.maximum), samples)


def _exponent(reach: float) -> int:
    """The least exponent at which the magnitude `reach` lies strictly inside the bins."""
    _, power = np.frexp(reach)  # reach < 2 ** power, and at least half of it
    return int(power) - (BINS // 2).bit_length() + 1
