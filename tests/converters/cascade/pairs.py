"""A pair of models with known truth: the share sent and the accuracy at each threshold are integrals."""

from __future__ import annotations

import numpy as np

from converters.cascade.certifying import Pairs

EDGE, CLOUD, POWER = 0.4645, 0.151, 1.85


def draw(n: int, rng: np.random.Generator, *, labels: bool = True) -> Pairs:
    """`n` samples. The score q is uniform; the edge is wrong with EDGE (1-q)^POWER, the cloud with CLOUD (1-q)^POWER.

    They are wrong independently, given q; where both are wrong, they agree half of the time.
    """
    q = rng.random(n)
    hard = (1 - q) ** POWER
    edge, cloud = rng.random(n) < EDGE * hard, rng.random(n) < CLOUD * hard
    differs = (edge != cloud) | (edge & cloud & (rng.random(n) < 0.5))
    return Pairs(q, differs, edge, cloud) if labels else Pairs(q, differs)


def accuracy(threshold: float) -> float:
    """Accuracy of the pair where answers with a lower score are sent."""
    t = min(max(threshold, 0.0), 1.0)
    rest = (1 - t) ** (POWER + 1) / (POWER + 1)
    return 1 - EDGE * rest - CLOUD * (1 / (POWER + 1) - rest)


def kept_accuracy(threshold: float) -> float:
    """Accuracy of the edge among the answers that are kept."""
    return 1 - EDGE * (1 - threshold) ** POWER / (POWER + 1)


def kept_and_different(threshold: float) -> float:
    """Share of samples that are kept and differ from the cloud's answer."""
    one, both = (EDGE + CLOUD) / (POWER + 1), 1.5 * EDGE * CLOUD / (2 * POWER + 1)
    return one * (1 - threshold) ** (POWER + 1) - both * (1 - threshold) ** (2 * POWER + 1)


def oracle(limit: float) -> float:
    """The smallest share sent with an accuracy of 1 - `limit`; it is also the threshold."""
    grid = np.linspace(0, 1, 100_001)
    return float(grid[np.argmax([accuracy(t) >= 1 - limit for t in grid])])
