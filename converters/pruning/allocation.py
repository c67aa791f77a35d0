"""How many channels each family loses: the steps with the least divergence per saved cost come first. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec


class Point(msgspec.Struct, frozen=True):
    """One measurement of a family alone: `removed` units cost this `divergence` and save this share of the cost."""

    removed: int
    divergence: float
    saved: float


class Step(msgspec.Struct, frozen=True):
    """A step of the path: `family` (its number) has `removed` units removed from here on, from `before` units."""

    family: int
    before: int
    removed: int
    price: float


def path(tables: Sequence[Sequence[Point]]) -> list[Step]:
    """The steps of all families, the cheapest (least divergence per saved share) first.

    Within a family the steps are those of the lower convex hull of its points, so their prices rise. The divergences of
    families are taken to add up.

    Args:
        tables: For each family its points, with a rising number of removed units; the point of 0 units is implied.
    """
    steps: list[Step] = []
    for number, table in enumerate(tables):
        hull = [Point(0, 0.0, 0.0)]
        for point in table:
            if point.saved <= hull[-1].saved:
                continue
            while len(hull) > 1 and _price(hull[-2], hull[-1]) >= _price(hull[-2], point):
                hull.pop()
            hull.append(point)
        steps += [
            Step(number, one.removed, other.removed, _price(one, other)) for one, other in itertools.pairwise(hull)
        ]
    return sorted(steps, key=lambda step: (step.price, step.family, step.removed))


def removed_after(steps: Sequence[Step], position: float, families: int) -> list[int]:
    """Removed units of each family after `position` steps; a part of a step removes that part of its units."""
    removed = [0] * families
    whole = int(position)
    for step in steps[:whole]:
        removed[step.family] = max(removed[step.family], step.removed)
    if whole < len(steps):
        step = steps[whole]
        part = step.before + round((position - whole) * (step.removed - step.before))
        removed[step.family] = max(removed[step.family], part)
    return removed


def whole_blocks(removed: int, width: int, block: int) -> int:
    """The largest number of channels, at most `removed`, after which a layer of `width` keeps whole blocks.

    Layers of less than two blocks lose `removed`, and so does a layer that keeps less than one.
    """
    kept = width - removed
    if width < 2 * block or kept < block:
        return removed
    return width - min(-(-kept // block) * block, width)


def _price(one: Point, other: Point) -> float:
    return max(other.divergence - one.divergence, 0.0) / (other.saved - one.saved)
