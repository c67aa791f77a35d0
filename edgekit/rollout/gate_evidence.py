"""The evidence that a new model is worse, from pairs of observations: a sequential test. Pure rules on arrays.

The test bets against the hypothesis that the share of good observations falls by no more than the margin. Each pair
multiplies the capital by ``1 + bet * (difference - margin)``, where the difference is 1 if only the previous model's
observation is good, -1 if only the new one's is, else 0. Under the hypothesis the capital is a supermartingale that
starts at 1, so it ever reaches a limit with a probability of at most ``1 / limit`` (Ville's inequality), however often
it is looked at. Several bets share the capital, because the size of a drop is not known. See Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", JRSS B 86(1), 2024.

A device that lies could bring any capital. So up to DROPPED_SHARE of the devices (rounded up) do not count: those whose
own capital is the largest, where it is more than their part of `tolerated`. Then devices that lie, if they are not more
than these, raise the capital by a factor of at most `tolerated`, and those that lie plainly by nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LIMIT = 30.0  # more than 1 / 0.05: the rest is for devices that lie
DROPPED_SHARE = 0.02
BETS = (0.08, 0.24, 0.6)
CAPITAL = (0.07, 0.83, 0.10)  # shares of the bets
SHARE_BETS = (0.5, 2.0, 8.0)  # for observations of one model, see `weigh_share`
SHARE_CAPITAL = (0.4, 0.4, 0.2)
MAX_LOG = 300.0

Counts = npt.NDArray[Any]


class Evidence(NamedTuple):
    """The evidence of each run.

    Attributes:
        value: The capital, (...,); from LIMIT on the new model is worse.
        dropped: Number of devices that do not count, for the bet with the most capital, (...,).
    """

    value: npt.NDArray[np.float64]
    dropped: npt.NDArray[np.int64]


def weigh(worse: Counts, equal: Counts, better: Counts, margin: float = 0.0) -> Evidence:
    """The evidence that the new model is worse by more than the margin.

    Args:
        worse, equal, better: Pairs of each device, as in `gate_pairs.Pairs`, (..., devices).
        margin: The share may fall by this much, 0 to less than 1.
    """
    counts = (np.asarray(worse), np.asarray(equal), np.asarray(better))
    bets = [bet / (1 + margin) for bet in BETS]
    factors = [[np.log1p(bet * (difference - margin)) for difference in (1.0, 0.0, -1.0)] for bet in bets]
    return _merged(counts, factors, CAPITAL)


def weigh_share(found: Counts, others: Counts, most: float) -> Evidence:
    """The evidence that the share of what was found is larger than `most`.

    Args:
        found, others: Observations of each device in which it was found, and the others, (..., devices).
        most: 0 to less than 1.
    """
    return _merged((np.asarray(found), np.asarray(others)), _share_factors(most), SHARE_CAPITAL)


def own_share_evidence(found: int, others: int, most: float) -> float:
    """As `weigh_share`, of one device alone, which is not set apart."""
    logs = [found * factors[0] + others * factors[1] for factors in _share_factors(most)]
    return float(sum(part * np.exp(min(log, MAX_LOG)) for part, log in zip(SHARE_CAPITAL, logs, strict=True)))


def _share_factors(most: float) -> list[list[float]]:
    """Logarithms of what one observation multiplies the capital of each bet by; none loses everything."""
    bets = [bet / (1 + bet * most) for bet in SHARE_BETS]
    return [[float(np.log1p(bet * (1 - most))), float(np.log1p(-bet * most))] for bet in bets]


def _merged(counts: tuple[Counts, ...], factors: list[list[float]], shares: tuple[float, ...]) -> Evidence:
    """The capital of all bets, without the devices that do not count.

    Args:
        counts: Observations of each kind, (..., devices).
        factors: For each bet, the logarithm of the factor of each kind.
        shares: Share of the capital of each bet.
    """
    seen = (np.add.reduce(counts) > 0).sum(axis=-1)
    most = np.maximum(1, np.ceil(DROPPED_SHARE * seen - 1e-9)).astype(np.int64)
    totals, drops = zip(*(_capital(counts, one, most) for one in factors), strict=True)
    logs = np.stack(totals, axis=-1) + np.log(shares)
    best = logs.argmax(axis=-1)[..., None]
    dropped = np.take_along_axis(np.stack(drops, axis=-1), best, axis=-1)[..., 0]
    return Evidence(np.exp(np.minimum(logs, MAX_LOG)).sum(axis=-1), dropped)


def tolerated(most: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The factor by which devices that lie may raise the capital, where up to `most` of them do not count."""
    return 1 + 2 / most


def _capital(
    counts: tuple[Counts, ...], factors: list[float], most: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Logarithm of the capital of one bet without the devices that do not count, and the number of those."""
    own: npt.NDArray[np.float64] = np.add.reduce([count * one for count, one in zip(counts, factors, strict=True)])
    if not own.shape[-1]:
        return np.zeros(own.shape[:-1]), np.zeros(own.shape[:-1], np.int64)
    largest = min(int(most.max()), own.shape[-1])
    if largest == 1:
        top = own.max(axis=-1, keepdims=True)
    else:
        top = -np.sort(-np.partition(own, own.shape[-1] - largest, axis=-1)[..., own.shape[-1] - largest :], axis=-1)
    out = (np.arange(largest) < most[..., None]) & (top > (np.log(tolerated(most)) / most)[..., None])
    return own.sum(axis=-1) - np.where(out, top, 0.0).sum(axis=-1), out.sum(axis=-1)
