"""Small histograms of single numbers, which merge exactly in any order. Pure rules.

Bin i of a sketch covers ``i * 2 ** exponent`` to ``(i + 1) * 2 ** exponent``. A sketch has at most MAX_BINS bins from
its first to its last value; where more are needed, bins are joined in pairs. So a sketch of many values is the same
whatever the order in which they came or its parts were merged.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping

import msgspec

from edgekit.bounds import MAX_INTEGER

MAX_BINS = 64
MAX_EXPONENT = 130


class Sketch(msgspec.Struct, frozen=True, array_like=True):
    """Counts of values in bins of one width.

    Attributes:
        exponent: The bin width is 2 ** exponent.
        first: Index of the first bin.
        counts: Values of each bin from the first on; neither the first nor the last is 0.
        minimum, maximum: The exact extremes.
        samples: Independent observations: as many as values, or fewer where one observation gave several values.
    """

    exponent: int
    first: int
    counts: tuple[int, ...]
    minimum: float
    maximum: float
    samples: int

    @property
    def total(self) -> int:
        """Number of values."""
        return sum(self.counts)

    def merged(self, other: Sketch) -> Sketch:
        """The sketch of both sets of values."""
        if self.exponent == other.exponent and (counts := _added(self, other)):
            extremes = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
            return Sketch(self.exponent, min(self.first, other.first), counts, *extremes, self.samples + other.samples)
        exponent = max(self.exponent, other.exponent)
        bins = dict(self.bins(exponent))
        for index, count in other.bins(exponent).items():
            bins[index] = bins.get(index, 0) + count
        extremes = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        return made(exponent, bins, extremes, self.samples + other.samples)

    def bins(self, exponent: int) -> dict[int, int]:
        """Counts by index for a width that is the same or larger; bins without values are left out."""
        bins: dict[int, int] = {}
        shift = exponent - self.exponent
        for index, count in enumerate(self.counts, start=self.first):
            if count:
                bins[index >> shift] = bins.get(index >> shift, 0) + count
        return bins

    def quantile(self, share: float) -> float:
        """The value below which `share` (0 to 1) of the values are; off by at most the width of a bin."""
        width, left = 2.0**self.exponent, share * self.total
        for index, count in enumerate(self.counts, start=self.first):
            if count and left <= count:
                value = (index + left / count) * width
                return min(max(value, self.minimum), self.maximum)
            left -= count
        return self.maximum


def _added(one: Sketch, other: Sketch) -> tuple[int, ...]:
    """The counts of two sketches with bins of one width, from their first bin on; empty where bins must be joined."""
    first = min(one.first, other.first)
    last = max(one.first + len(one.counts), other.first + len(other.counts))
    ends = (one.counts[0], one.counts[-1], other.counts[0], other.counts[-1]) if one.counts and other.counts else ()
    if last - first > MAX_BINS or not ends or 0 in ends:  # only a sketch from outside has an end without values
        return ()
    padded = [
        (0,) * (sketch.first - first) + sketch.counts + (0,) * (last - sketch.first - len(sketch.counts))
        for sketch in (one, other)
    ]
    return tuple(map(operator.add, *padded))


def made(exponent: int, bins: Mapping[int, int], extremes: tuple[float, float], samples: int) -> Sketch:
    """A sketch of counts by index, with bins joined until there are at most MAX_BINS between the first and the last."""
    low, high = min(bins), max(bins)
    shift = 0
    while (high >> shift) - (low >> shift) >= MAX_BINS:
        shift += 1
    counts = [0] * ((high >> shift) - (low >> shift) + 1)
    for index, count in bins.items():
        counts[(index >> shift) - (low >> shift)] += count
    return Sketch(exponent + shift, low >> shift, tuple(counts), *extremes, samples)


def merge(sketches: Iterable[Sketch]) -> Sketch | None:
    """The sketch of all values; None of no sketch."""
    found: Sketch | None = None
    for one in sketches:
        found = one if found is None else found.merged(one)
    return found


class Recorder:
    """Collects values for one sketch; a call costs a microsecond.

    Args:
        exponent: The smallest bin width is 2 ** exponent.
    """

    def __init__(self, exponent: int) -> None:
        self._exponent, self._scale = exponent, 2.0**-exponent
        self._bins: dict[int, int] = {}
        self._minimum, self._maximum = math.inf, -math.inf

    def add(self, value: float) -> None:
        """Count a finite value; others are left out."""
        if not -1e30 < value < 1e30:
            return
        index = math.floor(value * self._scale)
        self._bins[index] = self._bins.get(index, 0) + 1
        self._minimum, self._maximum = min(self._minimum, value), max(self._maximum, value)
        if len(self._bins) > 4 * MAX_BINS:
            self._coarsen()

    def sketch(self) -> Sketch | None:
        """The sketch of all values so far; None without one."""
        if not self._bins:
            return None
        extremes = float(self._minimum), float(self._maximum)
        return made(self._exponent, self._bins, extremes, sum(self._bins.values()))

    def _coarsen(self) -> None:
        """Join bins as a sketch will have to anyway."""
        sketch = made(self._exponent, self._bins, (self._minimum, self._maximum), 0)
        self._exponent, self._scale, self._bins = sketch.exponent, 2.0**-sketch.exponent, sketch.bins(sketch.exponent)


def sketch_fault(sketch: Sketch) -> str:
    """Why a sketch from outside is not valid; empty if it is."""
    if not -MAX_EXPONENT <= sketch.exponent <= MAX_EXPONENT:
        return f"its exponent is {sketch.exponent}, expected {-MAX_EXPONENT} to {MAX_EXPONENT}"
    if not 1 <= len(sketch.counts) <= MAX_BINS:
        return f"it has {len(sketch.counts)} bins, expected 1 to {MAX_BINS}"
    if abs(sketch.first) > MAX_INTEGER:
        return f"its first bin is {sketch.first}"
    if min(sketch.counts) < 0 or not 0 < sketch.total <= MAX_INTEGER or not 0 < sketch.samples <= sketch.total:
        return f"it counts {sketch.total} values of {sketch.samples} samples"
    if not (math.isfinite(sketch.minimum) and math.isfinite(sketch.maximum) and sketch.minimum <= sketch.maximum):
        return f"its values are from {sketch.minimum:g} to {sketch.maximum:g}"
    return ""
