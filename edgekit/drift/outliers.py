"""Samples out of distribution: with a statistic of an input outside of almost all calibration data. Pure.

The bounds of a statistic are its r-th smallest and its r-th largest value among n samples. A further sample of the
same kind lies outside of them with a probability of at most 2 r / (n + 1), whatever the distribution is, because each
rank is equally likely for it. r is chosen so that these probabilities add up to at most SHARE over all statistics of
the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from edgekit.drift.reference import Reference, Statistic
from edgekit.drift.statistics import INPUT

SHARE = 0.01  # of the samples like the calibration data, at most
_BY_CHANCE = ".element"  # one element of many, which says little of its sample


def bounds_rank(samples: int, statistics: int) -> int:
    """The rank r of the bounds; 0 where there are too few samples for bounds.

    Args:
        samples: Number n of samples.
        statistics: Number of statistics with bounds.
    """
    return int(SHARE * (samples + 1) / (2 * statistics))


def samples_for_bounds(reference: Reference) -> int:
    """The number of samples with which the statistics of a reference have bounds; 0 where none is of an input."""
    judged = sum(_is_judged(one) for one in reference.statistics)
    return math.ceil(2 * judged / SHARE) - 1 if judged else 0


def with_bounds(statistics: Sequence[Statistic], values: Mapping[str, Sequence[float]]) -> list[Statistic]:
    """The statistics, those of inputs with bounds where there are samples enough.

    Args:
        statistics: Of a reference.
        values: The values of each, by name.
    """
    judged = [one for one in statistics if _is_judged(one)]
    found = []
    for one in statistics:
        rank = bounds_rank(one.samples, len(judged)) if _is_judged(one) else 0
        if rank:
            ordered = sorted(values[one.name])
            one = msgspec.structs.replace(one, bounds=(ordered[rank - 1], ordered[-rank]))
        found.append(one)
    return found


def bounds_of(reference: Reference) -> dict[str, tuple[float, float]]:
    """The bounds by statistic; empty for a bundle of an earlier release, or one with too few samples."""
    return {one.name: one.bounds for one in reference.statistics if not isinstance(one.bounds, msgspec.UnsetType)}


def outlying(bounds: Mapping[str, tuple[float, float]], values: Mapping[str, float]) -> str:
    """The name of a statistic of a sample that is outside of its bounds; empty for none."""
    for name, (low, high) in bounds.items():
        value = values.get(name)
        if value is not None and not low <= value <= high:
            return name
    return ""


def _is_judged(one: Statistic) -> bool:
    return one.name.startswith(f"{INPUT}.") and not one.name.endswith(_BY_CHANCE)
