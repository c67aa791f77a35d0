"""Activation ranges read off one histogram, by each of the rules that a recipe may name.

minmax      every value fits.
percentile  all but a share of TAIL, half of it at either end.
mse         the range whose 8-bit grid gives the least squared error: clipping against coarseness.
entropy     the clip at which 8 bits tell most about the values: least Kullback-Leibler divergence of the quantized
            distribution (Migacz 2017, "8-bit inference with TensorRT"), searched over magnitudes.
"""

from __future__ import annotations

import numpy as np

from converters.calibration.histogram import BINS, Histogram
from edgekit.tensors import Array

TAIL = 1e-4
STEPS = 255  # of an 8-bit grid
RATIOS = np.linspace(0.1, 1.0, 91)
LEVELS = 128  # magnitudes of a signed 8-bit grid


def read_range(found: Histogram, rule: str) -> tuple[float, float]:
    """The smallest and largest value that the grid should hold, inside the true extremes.

    Args:
        found: The values of one tensor.
        rule: One of ``edgekit.bundle.recipe.RANGES``.
    """
    low, high = found.minimum, found.maximum
    if rule == "percentile":
        low, high = _percentile(found)
    elif rule == "mse":
        low, high = _least_error(found)
    elif rule == "entropy":
        clip = _least_divergence(found)
        if -clip <= high and low <= clip:  # values of one sign, all beyond the clip, keep their range
            low, high = max(low, -clip), min(high, clip)
    return max(low, found.minimum), min(high, found.maximum)


def _percentile(found: Histogram) -> tuple[float, float]:
    share = np.cumsum(found.counts) / found.counts.sum()
    first = int(np.searchsorted(share, TAIL / 2, side="right"))
    last = int(np.searchsorted(share, 1 - TAIL / 2, side="left"))
    return float(found.edges[first]), float(found.edges[last + 1])


def _least_error(found: Histogram) -> tuple[float, float]:
    """Clips of both ends that minimise ``clipped squared error + inside * step ** 2 / 12``."""
    counts, centres = found.counts.astype(np.float64), found.centres
    lows = np.unique(np.minimum(found.minimum, 0.0) * RATIOS)
    highs = np.unique(np.maximum(found.maximum, 0.0) * RATIOS)
    below = np.array([(counts * np.minimum(centres - low, 0.0) ** 2).sum() for low in lows])
    above = np.array([(counts * np.maximum(centres - high, 0.0) ** 2).sum() for high in highs])
    steps = (highs[None, :] - lows[:, None]) / STEPS
    # values of exactly zero are on every grid: they lose nothing
    coarse = steps**2 / 12 * max(counts.sum() - found.zeros, 0.0)
    row, column = np.unravel_index(int(np.argmin(below[:, None] + above[None, :] + coarse)), coarse.shape)
    return float(lows[row]), float(highs[column])


def _least_divergence(found: Histogram) -> float:
    half = BINS // 2
    magnitudes = found.counts[half:].astype(np.float64) + found.counts[:half][::-1]
    magnitudes[0] -= min(found.zeros, magnitudes[0])  # a spike at zero says nothing about the scale
    width = 2.0**found.exponent
    used = int(np.flatnonzero(magnitudes)[-1]) + 1 if magnitudes.any() else 1
    if used <= LEVELS:
        return used * width
    best, least = used, np.inf
    for end in [*range(LEVELS, used, max(1, (used - LEVELS) // 128)), used]:
        divergence = _divergence(magnitudes, end)
        if divergence < least:
            best, least = end, divergence
    return best * width


def _divergence(magnitudes: Array, end: int) -> float:
    """Of the distribution clipped at bin `end` from itself in LEVELS levels."""
    reference = magnitudes[:end].copy()
    level = np.arange(end) * LEVELS // end
    sums = np.bincount(level, weights=reference, minlength=LEVELS)
    filled = np.bincount(level, weights=reference > 0, minlength=LEVELS)
    reference[-1] += magnitudes[end:].sum()
    quantized = np.where(magnitudes[:end] > 0, sums[level] / np.maximum(filled[level], 1), 0.0)
    reference, quantized = reference / reference.sum(), quantized / max(quantized.sum(), 1e-12)
    present = reference > 0
    return float((reference[present] * np.log(reference[present] / np.maximum(quantized[present], 1e-9))).sum())
