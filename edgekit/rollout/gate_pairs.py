"""Pairs of observations, one of the previous model and one of the new one, of the same device. Pure rules.

A device's own previous model is the comparison, so that devices may differ from each other. Each observation is in one
pair only: an estimate of the baseline that is used again and again would add up its own error. Devices report counts,
so which observations meet is drawn, from a hash, and every controller draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

MAX_PAIRS = 2000  # of one device and gate
MAX_DRAWN = 200  # of one report


class Pairs(msgspec.Struct, frozen=True, array_like=True):
    """The pairs of one device and one gate.

    Attributes:
        worse: Pairs in which only the previous model's observation is good.
        equal: Pairs in which both are good or both are bad.
        better: Pairs in which only the new model's observation is good.
        baseline_good, candidate_good: Good observations of each model in all pairs.
    """

    worse: int = 0
    equal: int = 0
    better: int = 0
    baseline_good: int = 0
    candidate_good: int = 0

    @property
    def count(self) -> int:
        """Number of pairs."""
        return self.worse + self.equal + self.better

    def plus(self, more: Pairs) -> Pairs:
        """These pairs and more of them."""
        sums = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(more), strict=True)
        return Pairs(*(before + new for before, new in sums))


def paired(pairs: Pairs, baseline: tuple[int, int], candidate: tuple[int, int], seed: str) -> Pairs:
    """Make pairs of the observations that are in none yet.

    Args:
        pairs: The pairs before.
        baseline, candidate: Good observations, and all observations, of each model up to now.
        seed: Names the device and the gate; the draws depend on it.
    """
    count = pairs.count
    room = min(baseline[1] - count, candidate[1] - count, MAX_PAIRS - count, MAX_DRAWN)
    if room <= 0:
        return pairs
    draws = draws_of(f"{seed}/{count}", 3 * room)
    before = (baseline[0] - pairs.baseline_good, baseline[1] - count)
    after = (candidate[0] - pairs.candidate_good, candidate[1] - count)
    return pairs.plus(draw_pairs(room, before, after, draws))


def draw_pairs(count: int, baseline: tuple[int, int], candidate: tuple[int, int], draws: Iterator[float]) -> Pairs:
    """Pairs of observations that are drawn without putting back.

    Args:
        count: Number of pairs; no more than the observations of either model.
        baseline, candidate: Good observations, and all observations, of each model.
        draws: At least three for each pair.
    """
    before = drawn(*baseline, count, draws)
    after = drawn(*candidate, count, draws)
    worse = drawn(count - after, count, before, draws)  # how many good ones of before meet a bad one
    better = after - before + worse
    return Pairs(worse, count - worse - better, better, before, after)


def drawn(good: int, total: int, count: int, draws: Iterator[float]) -> int:
    """Good ones among `count` that are drawn from `total` without putting back. A device may report contradictions."""
    found = 0
    good = min(max(0, good), total)
    for _ in range(count):
        if next(draws) * total < good - found:
            found += 1
        total -= 1
    return found


def draws_of(seed: str, count: int) -> Iterator[float]:
    """Numbers from 0 to less than 1 that follow from the seed."""
    data = hashlib.shake_256(seed.encode()).digest(4 * count)
    return (int.from_bytes(data[at : at + 4], "big") / 2**32 for at in range(0, len(data), 4))
