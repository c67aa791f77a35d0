"""Comparisons of two sets of observations, with bounds that hold for any number of them. Pure rules.

`distance` uses Hoeffding's inequality (1963) at each edge of the bins and the union bound over the edges. It also holds
where one observation gives several values, because their share below an edge is a number from 0 to 1 too.
`share_bounds` uses Chernoff's bound in its relative-entropy form. Both need independent observations of each set.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from edgekit.sketches.sketch import Sketch

_STEPS = 50


class Distance(NamedTuple):
    """The difference of two distributions.

    Attributes:
        largest: Largest difference of the shares below any edge of the bins, in either direction.
        rise: Largest share by which the second set has fewer values below an edge: how far it moved upwards.
        radius: By chance alone, `largest` is above it with a probability of at most the level.
    """

    largest: float
    rise: float
    radius: float


def distance(before: Sketch, now: Sketch, level: float) -> Distance:
    """Compare two sketches of one signal.

    Args:
        before, now: The two sets of observations.
        level: Probability, 0 to 1, with which chance alone may exceed the radius.
    """
    exponent = max(before.exponent, now.exponent)
    one, other = before.bins(exponent), now.bins(exponent)
    edges = sorted({*one, *other})
    share_one = share_other = largest = rise = 0.0
    for index in edges[:-1]:
        share_one += one.get(index, 0) / before.total
        share_other += other.get(index, 0) / now.total
        rise = max(rise, share_one - share_other)
        largest = max(largest, abs(share_one - share_other))
    chances = max(1, len(edges) - 1) * 4 / level  # two sides of two sets at each edge
    radius = sum(math.sqrt(math.log(chances) / (2 * sketch.samples)) for sketch in (before, now))
    return Distance(largest, rise, radius)


def share_bounds(hits: int, total: int, level: float) -> tuple[float, float]:
    """Bounds of a share: each of them is wrong with a probability of at most half of `level`.

    Args:
        hits: Observations that count.
        total: All observations; at least one.
        level: Probability, 0 to 1.
    """
    share, limit = hits / total, math.log(2 / level) / total
    return _bound(share, 0.0, limit), _bound(share, 1.0, limit)


def _bound(share: float, end: float, limit: float) -> float:
    """The share between the observed one and `end` whose relative entropy from it is `limit`, by bisection."""
    inside, outside = share, end
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if _entropy(share, middle) <= limit:
            inside = middle
        else:
            outside = middle
    return inside if _entropy(share, end) > limit else end


def _entropy(share: float, other: float) -> float:
    """Relative entropy of a coin with `share` from one with `other`."""
    total = 0.0
    for p, q in ((share, other), (1 - share, 1 - other)):
        if p > 0:
            if q <= 0:
                return math.inf
            total += p * math.log(p / q)
    return total
