"""Tests in the field whether the rate of disagreement is above what a certificate says. Pure.

Some confident answers are also sent to the cloud tier. If the certified bound holds, each of them differs with a
probability of at most the bound, so the capital of any bet that more differ grows beyond 1 / error with a probability
of at most `error`, however long it runs (Ville's inequality; Waudby-Smith and Ramdas 2024). The bet is a mixture over
alternative rates; the capital depends on two counts only, so these are all that a device must keep.
"""

from __future__ import annotations

import math

import msgspec

_RATES = 24  # alternatives of the mixture
_LEAST_RATE = 1e-4


class Explored(msgspec.Struct, frozen=True):
    """Confident answers that were also sent to the cloud tier, and how many of them differed."""

    count: int = 0
    differing: int = 0

    def plus(self, count: int, differing: int) -> Explored:
        """With more answers."""
        return Explored(self.count + count, self.differing + differing)


def evidence(explored: Explored, bound: float) -> float:
    """Logarithm of the capital of a bet against "at most `bound` of the confident answers differ".

    The alternatives are evenly spaced in the logarithm of the odds, from the bound to near 1.
    """
    bound = max(bound, _LEAST_RATE)
    if bound >= 1.0 or not explored.count:
        return 0.0
    low, high = math.log(bound / (1 - bound)), 6.0
    if low >= high:
        return 0.0
    agreeing, logs = explored.count - explored.differing, []
    for step in range(1, _RATES + 1):
        rate = 1 / (1 + math.exp(-(low + (high - low) * (step / _RATES) ** 2)))
        logs.append(explored.differing * math.log(rate / bound) + agreeing * math.log((1 - rate) / (1 - bound)))
    largest = max(logs)
    return largest + math.log(sum(math.exp(one - largest) for one in logs) / _RATES)


def refuted(explored: Explored, bound: float, error: float) -> bool:
    """True where the answers refute the bound; wrongly so with a probability of at most `error`, at any time."""
    return evidence(explored, bound) >= math.log(1 / error)
