"""The evidence that a new model is worse, from pairs of observations: a sequential test. Pure rules on arrays.

The test bets against the hypothesis that the share of good observations falls by no more than the margin. Each pair
multiplies the capital by ``1 + bet * (difference - margin)``, where the difference is 1 if only the previous model's
observation is good, -1 if only the new one's is, else 0. Under the hypothesis the capital is a supermartingale that
starts at 1, so it ever reaches a limit with a probability of at most ``1 / limit`` (Ville's inequality), however often
it is looked at. Several bets share the capital, because the size of a drop is not known. See Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", JRSS B 86(1), 2024.

A device that lies could bring any capital. So of up to DROPPED_SHARE of the devices (rounded up), those with the
largest capital of their own, no more than TOLERATED counts in all. Then devices that lie, if they are not more than
these, raise the capital by a factor of at most TOLERATED, and honest devices lose nothing up to there. Devices among
them that are plainly worse (`_is_plain`) do not count at all: that is a lie, or a fault of the device alone. A model
that is worse everywhere is plainly worse on more devices than these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LIMIT = 24.0  # more than 1 / 0.05: the rest is for devices that lie
DROPPED_SHARE = 0.02
TOLERATED = 3.0
PLAIN_PAIRS, PLAIN_SHARE = 2, 0.3  # more bad observations than expected, in all and for each observation
BETS = (0.08, 0.24, 0.6)
CAPITAL = (0.07, 0.83, 0.10)  # shares of the bets
SHARE_BETS = (0.5, 2.0, 8.0)  # for observations of one model, see `weigh_share`
SHARE_CAPITAL = (0.4, 0.4, 0.2)
BESIDE_BETS = (0.06, 0.18, 0.45)  # beside a control cohort: differences are twice as large, see `weigh_beside`
STEPS = 17  # differences from -2 to 2, in steps of a quarter
MAX_LOG = 300.0

Counts = npt.NDArray[Any]


class Evidence(NamedTuple):
    """The evidence of each run.

    Attributes:
        value: The capital, (...,); from LIMIT on the new model is worse.
        dropped: Number of devices that do not count at all, for the bet with the most capital, (...,).
    """

    value: npt.NDArray[np.float64]
    dropped: npt.NDArray[np.int64]


def weigh(worse: Counts, equal: Counts, better: Counts, margin: float = 0.0) -> Evidence:
    """The evidence that the new model is worse by more than the margin.

    Args:
        worse, equal, better: Pairs of each device, as in `gate_pairs.Pairs`, (..., devices); also of those without any.
        margin: The share may fall by this much, 0 to less than 1.
    """
    counts = (np.asarray(worse), np.asarray(equal), np.asarray(better))
    plain = _is_plain(counts[0] - counts[2], counts[0] + counts[1] + counts[2], margin)
    bets = [bet / (1 + margin) for bet in BETS]
    factors = [[np.log1p(bet * (difference - margin)) for difference in (1.0, 0.0, -1.0)] for bet in bets]
    return _merged(counts, factors, CAPITAL, plain)


def weigh_beside(steps: Counts, worse: Counts, equal: Counts, better: Counts, margin: float = 0.0) -> Evidence:
    """As `weigh`, where the change of a control cohort is subtracted from the difference of a pair.

    Args:
        steps: Comparisons of each device by that difference, from -2 to 2 in steps of a quarter, (STEPS, ..., devices).
        worse, equal, better: Pairs of each device that were made without a control cohort, (..., devices).
        margin: As for `weigh`.
    """
    beside = np.asarray(steps)
    counts = (*beside, np.asarray(worse), np.asarray(equal), np.asarray(better))
    differences = [*(step / 4 - 2.0 for step in range(STEPS)), 1.0, 0.0, -1.0]
    excess = np.add.reduce([count * one for count, one in zip(counts, differences, strict=True)])
    plain = _is_plain(excess, np.add.reduce(counts), margin)
    bets = [bet / (1 + margin) for bet in BESIDE_BETS]
    factors = [[float(np.log1p(bet * (difference - margin))) for difference in differences] for bet in bets]
    return _merged(counts, factors, CAPITAL, plain)


def weigh_share(found: Counts, others: Counts, most: float) -> Evidence:
    """The evidence that the share of what was found is larger than `most`.

    Args:
        found, others: Observations of each device in which it was found, and the others, (..., devices); also of those
            without any.
        most: 0 to less than 1.
    """
    counts = (np.asarray(found), np.asarray(others))
    plain = _is_plain(counts[0], counts[0] + counts[1], most)
    return _merged(counts, _share_factors(most), SHARE_CAPITAL, plain)


def own_share_evidence(found: int, others: int, most: float) -> float:
    """As `weigh_share`, of one device alone, which is not set apart."""
    logs = [found * factors[0] + others * factors[1] for factors in _share_factors(most)]
    return float(sum(part * np.exp(min(log, MAX_LOG)) for part, log in zip(SHARE_CAPITAL, logs, strict=True)))


def _share_factors(most: float) -> list[list[float]]:
    """Logarithms of what one observation multiplies the capital of each bet by; none loses everything."""
    bets = [bet / (1 + bet * most) for bet in SHARE_BETS]
    return [[float(np.log1p(bet * (1 - most))), float(np.log1p(-bet * most))] for bet in bets]


def _merged(
    counts: tuple[Counts, ...], factors: list[list[float]], shares: tuple[float, ...], plain: npt.NDArray[np.bool_]
) -> Evidence:
    """The capital of all bets, without what devices bring that could lie.

    Args:
        counts: Observations of each kind, (..., devices).
        factors: For each bet, the logarithm of the factor of each kind.
        shares: Share of the capital of each bet.
        plain: Devices that are plainly worse, (..., devices).
    """
    seen = (np.add.reduce(counts) > 0).sum(axis=-1)
    totals, drops = zip(*(_capital(counts, one, seen, plain) for one in factors), strict=True)
    logs = np.stack(totals, axis=-1) + np.log(shares)
    best = logs.argmax(axis=-1)[..., None]
    dropped = np.take_along_axis(np.stack(drops, axis=-1), best, axis=-1)[..., 0]
    return Evidence(np.exp(np.minimum(logs, MAX_LOG)).sum(axis=-1), dropped)


def _is_plain(excess: Counts, observations: Counts, expected: float) -> npt.NDArray[np.bool_]:
    """Devices that are plainly worse: their bad observations exceed the expected share by far."""
    plain: npt.NDArray[np.bool_] = excess > PLAIN_PAIRS + (expected + PLAIN_SHARE) * observations
    return plain


def _capital(
    counts: tuple[Counts, ...], factors: list[float], seen: npt.NDArray[np.int64], plain: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Logarithm of the capital of one bet as far as it counts, and the number of devices that do not count at all."""
    own: npt.NDArray[np.float64] = np.add.reduce([count * one for count, one in zip(counts, factors, strict=True)])
    devices = own.shape[-1]
    if not devices:
        return np.zeros(own.shape[:-1]), np.zeros(own.shape[:-1], np.int64)
    most = int(_most(np.asarray(devices)))
    top = np.argpartition(own, devices - most, axis=-1)[..., devices - most :]
    top = np.take_along_axis(top, np.argsort(-np.take_along_axis(own, top, axis=-1), axis=-1), axis=-1)
    largest, is_plain = np.take_along_axis(own, top, axis=-1), np.take_along_axis(plain, top, axis=-1)
    limited = ~is_plain & (np.arange(most) < _most(seen)[..., None])
    left_out = np.where(is_plain, largest, 0.0).sum(axis=-1)
    doubtful = np.where(limited, np.maximum(largest, 0.0), 0.0).sum(axis=-1)
    return own.sum(axis=-1) - left_out - np.maximum(0.0, doubtful - np.log(TOLERATED)), is_plain.sum(axis=-1)


def _most(devices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many of so many devices may lie."""
    most: npt.NDArray[np.int64] = np.maximum(1, np.ceil(DROPPED_SHARE * devices - 1e-9)).astype(np.int64)
    return most
