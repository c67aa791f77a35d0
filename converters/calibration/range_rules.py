"""Reads activation ranges from a histogram, by the rules that a recipe may name.

minmax      All values are inside the range.
percentile  A share of TAIL of the values is outside, half of it at each end.
mse         The range whose 8-bit grid has the least squared error: clipping error against rounding error.
entropy     The range with the least Kullback-Leibler divergence of the quantized distribution (Migacz 2017, "8-bit
            inference with TensorRT"), searched over magnitudes.
"""

from __future__ import annotations

import numpy as np

from edgekit.sketches.histogram import BINS, Histogram
from edgekit.tensors import Array

TAIL = 1e-4
STEPS = 255  # of an 8-bit grid
RATIOS = np.linspace(0.1, 1.0, 91)
ACTIVATION_LEVELS = 128  # magnitudes of a signed 8-bit grid


def read_range(histogram: Histogram, rule: str) -> tuple[float, float]:
    """The smallest and largest value of the quantization grid, inside the true extremes.

    Args:
        histogram: Histogram of one tensor.
        rule: One of ``edgekit.bundle.recipe.RANGES``.
    """
    low, high = histogram.minimum, histogram.maximum
    if rule == "percentile":
        low, high = _percentile(histogram)
    elif rule == "mse":
        low, high = _least_error(histogram)
    elif rule == "entropy":
        clip = _least_divergence(histogram)
        if -clip <= high and low <= clip:  # if all values have one sign and lie outside, the range is kept
            low, high = max(low, -clip), min(high, clip)
    return max(low, histogram.minimum), min(high, histogram.maximum)


def _percentile(histogram: Histogram) -> tuple[float, float]:
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    first = int(np.searchsorted(share, TAIL / 2, side="right"))
    last = int(np.searchsorted(share, 1 - TAIL / 2, side="left"))
    return float(histogram.edges[first]), float(histogram.edges[last + 1])


def _least_error(histogram: Histogram) -> tuple[float, float]:
    """The range that minimizes ``clipped squared error + values inside * step ** 2 / 12``."""
    counts, centres = histogram.counts.astype(np.float64), histogram.centres
    lows = np.unique(np.minimum(histogram.minimum, 0.0) * RATIOS)
    highs = np.unique(np.maximum(histogram.maximum, 0.0) * RATIOS)
    below = np.array([(counts * np.minimum(centres - low, 0.0) ** 2).sum() for low in lows])
    above = np.array([(counts * np.maximum(centres - high, 0.0) ** 2).sum() for high in highs])
    steps = (highs[None, :] - lows[:, None]) / STEPS
    # exact zeros are on every grid, so they have no error
    coarse = steps**2 / 12 * max(counts.sum() - histogram.zeros, 0.0)
    row, column = np.unravel_index(int(np.argmin(below[:, None] + above[None, :] + coarse)), coarse.shape)
    return float(lows[row]), float(highs[column])


def _least_divergence(histogram: Histogram) -> float:
    half = BINS // 2
    magnitudes = histogram.counts[half:].astype(np.float64) + histogram.counts[:half][::-1]
    magnitudes[0] -= min(histogram.zeros, magnitudes[0])  # exact zeros do not depend on the scale
    width = 2.0**histogram.exponent
    used = int(np.flatnonzero(magnitudes)[-1]) + 1 if magnitudes.any() else 1
    if used <= ACTIVATION_LEVELS:
        return used * width
    best, least = used, np.inf
    for end in [*range(ACTIVATION_LEVELS, used, max(1, (used - ACTIVATION_LEVELS) // 128)), used]:
        divergence = _divergence(magnitudes, end)
        if divergence < least:
            best, least = end, divergence
    return best * width


def _divergence(magnitudes: Array, end: int) -> float:
    """Divergence of the distribution, clipped at bin `end`, from the same distribution in ACTIVATION_LEVELS levels."""
    reference = magnitudes[:end].copy()
    level = np.arange(end) * ACTIVATION_LEVELS // end
    sums = np.bincount(level, weights=reference, minlength=ACTIVATION_LEVELS)
    filled = np.bincount(level, weights=reference > 0, minlength=ACTIVATION_LEVELS)
    reference[-1] += magnitudes[end:].sum()
    quantized = np.where(magnitudes[:end] > 0, sums[level] / np.maximum(filled[level], 1), 0.0)
    reference, quantized = reference / reference.sum(), quantized / max(quantized.sum(), 1e-12)
    present = reference > 0
    return float((reference[present] * np.log(reference[present] / np.maximum(quantized[present], 1e-9))).sum())
