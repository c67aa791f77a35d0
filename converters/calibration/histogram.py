"""Counts of one tensor's values in bins whose width is a power of two, so that any two histograms merge exactly."""

from __future__ import annotations

import msgspec
import numpy as np

from edgekit.tensors import Array

BINS = 2048
SMALLEST = 2.0**-100  # reach of a tensor that is always zero


class Histogram(msgspec.Struct, frozen=True):
    """Counts of one tensor's values in BINS bins around zero.

    Two histograms always have a common grid: the finer one's bins are joined in pairs until the widths agree, and the
    result is what one pass over all values would have given, whatever the order of merging.

    Attributes:
        minimum, maximum: The exact extremes.
        exponent: The bin width is 2 ** exponent; bin i covers (i - BINS / 2) to (i + 1 - BINS / 2) widths.
        counts: Values per bin, (BINS,) int64.
        zeros: How many values are exactly zero, as Relu makes them.
    """

    minimum: float
    maximum: float
    exponent: int
    counts: Array
    zeros: int = 0

    @classmethod
    def of(cls, values: Array) -> Histogram:
        """The histogram of every element of `values`, which must be finite and at least one."""
        flat = np.asarray(values, dtype=np.float64).ravel()
        low, high = float(flat.min()), float(flat.max())
        exponent = _exponent(max(abs(low), abs(high), SMALLEST))
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
        """The same counts in bins 2 ** `steps` times as wide; it still merges exactly with any other."""
        exponent = self.exponent + steps
        return Histogram(self.minimum, self.maximum, exponent, self._counts_at(exponent), self.zeros)

    @property
    def edges(self) -> Array:
        """Where bins begin, and the last one ends, (BINS + 1,)."""
        edges: Array = (np.arange(BINS + 1) - BINS // 2) * 2.0**self.exponent
        return edges

    @property
    def centres(self) -> Array:
        """The middle of each bin, (BINS,)."""
        centres: Array = (np.arange(BINS) - BINS // 2 + 0.5) * 2.0**self.exponent
        return centres

    def _counts_at(self, exponent: int) -> Array:
        counts = self.counts
        for _ in range(min(exponent - self.exponent, BINS.bit_length())):
            joined = counts.reshape(-1, 2).sum(axis=1)
            counts = np.zeros_like(counts)
            counts[BINS // 4 : BINS // 4 + BINS // 2] = joined
        return counts


def _exponent(reach: float) -> int:
    """The least exponent at which `reach` lies strictly inside the bins."""
    _, power = np.frexp(reach)  # reach < 2 ** power, and at least half of it
    return int(power) - (BINS // 2).bit_length() + 1
