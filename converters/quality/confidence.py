"""Confidence bounds on the mean difference of two models' scores on the same samples."""

from __future__ import annotations

import functools

import numpy as np
from scipy import stats

from converters.quality.drop import BETTING, CLOPPER_PEARSON, DELONG, STUDENT_T, Drop
from edgekit.tensors import Array

LEAST_ASYMPTOTIC = 30  # fewest samples for an asymptotic bound
LEAST_IN_CLASS = 10  # fewest samples of each class for a bound on the area under the curve
ORDER_SEED = 20240229
BOLDNESS = 0.9  # share of the largest bet that cannot lose all capital
PRIOR_VARIANCE = 0.01
HALVINGS = 50
ROUNDING = 1e-12  # of a mean of scores; a smaller difference is none


def paired_drop(
    reference: Array,
    candidate: Array,
    confidence: float,
    *,
    limits: tuple[float, float] | None = None,
    positive: Array | None = None,
    method: str = "",
) -> Drop:
    """Bound the mean of reference - candidate, both (N,) scores of the same samples.

    * Scores of 0 and 1: ``clopper-pearson``, exact. The drop is the share of samples that got worse minus the share
    that
      got better, so it is at most the upper limit of the first share (Clopper and Pearson 1934). Without any sample
      that got worse, 299 samples give 0.01 at 95 %. With `method` ``betting``, gains count too; this is tighter where
      many samples change both ways. Choose the method on other samples than these (`likely_method`).
    * Scores within `limits`: ``betting``, exact (Waudby-Smith and Ramdas 2024, section 4).
    * Other scores, such as errors without a limit: ``student-t``, asymptotic.
    * With `positive`, (N,) truth values, scores are placements under the ROC curve: ``delong`` (DeLong, DeLong and
      Clarke-Pearson 1988), asymptotic.
    """
    changes = np.asarray(reference, dtype=np.float64) - candidate
    n = len(changes)
    value = float(np.mean(changes))
    if positive is not None:
        return _delong(changes, positive.astype(bool), value, confidence)
    if limits is None and _zero_one(reference) and _zero_one(candidate):
        limits = (0.0, 1.0)
        if method != BETTING:
            losses, gains = int(np.sum(changes > 0)), int(np.sum(changes < 0))
            upper, lower = upper_share(losses, n, confidence), -upper_share(gains, n, confidence)
            return Drop(value, lower, upper, n, CLOPPER_PEARSON)
    if limits is not None:
        reach = limits[1] - limits[0]
        value = 0.0 if abs(value) < ROUNDING * reach else value
        upper, lower = betting_upper(changes, reach, confidence), -betting_upper(-changes, reach, confidence)
        # A bound holds from the first samples that gave it, so the mean of all may be beyond it by chance.
        return Drop(value, min(lower, value), max(upper, value), n, BETTING)
    if n < LEAST_ASYMPTOTIC:
        return Drop(value, -float("inf"), float("inf"), n, STUDENT_T, asymptotic=True)
    margin = float(stats.t.ppf(confidence, n - 1) * np.std(changes, ddof=1) / np.sqrt(n))
    return Drop(value, value - margin, value + margin, n, STUDENT_T, asymptotic=True)


def likely_method(reference: Array, candidate: Array, n: int, confidence: float) -> str:
    """The method with the smaller bound on `n` samples that are like these M samples, with scores of 0 and 1.

    The bound must be computed on other samples than these; otherwise it would not hold.
    """
    if not (_zero_one(reference) and _zero_one(candidate)):
        return ""
    changes = np.asarray(reference, dtype=np.float64) - candidate
    losses, gains = (round(float(np.mean(c)) * n) for c in (changes > 0, changes < 0))
    alike = np.concatenate([np.ones(losses), -np.ones(gains), np.zeros(max(0, n - losses - gains))])
    return BETTING if betting_upper(alike, 1.0, confidence) < upper_share(losses, n, confidence) else CLOPPER_PEARSON


@functools.lru_cache(maxsize=4096)
def upper_share(count: int, n: int, confidence: float) -> float:
    """One-sided Clopper-Pearson upper limit of a share, where `count` of `n` samples have the property."""
    return 1.0 if count >= n else float(stats.beta.ppf(confidence, count + 1, n - count))


def betting_upper(changes: Array, reach: float, confidence: float) -> float:
    """Upper bound of the mean of `changes` (N,), independent draws between -`reach` and `reach`.

    For each candidate mean m, the method bets against m, sample by sample. Each stake depends on earlier samples only.
    If m is the true mean, the capital grows by a factor of 1 / (1 - confidence) with a probability of at most 1 -
    confidence (Ville's inequality), for any distribution. Every m against which the capital grows that much is ruled
    out. The order of the samples is drawn with a fixed seed.
    """
    x = (np.random.default_rng(ORDER_SEED).permutation(np.asarray(changes, dtype=np.float64)) / reach + 1.0) / 2.0
    n, counts = len(x), np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (counts + 1)
    variance = (PRIOR_VARIANCE + np.cumsum((x - mean) ** 2)) / (counts + 1)
    before = np.concatenate([[PRIOR_VARIANCE], variance[:-1]])
    target = np.log(1.0 / (1.0 - confidence))
    stakes = np.sqrt(2.0 * target / (n * before))

    def ruled_out(m: float) -> bool:
        bets = np.minimum(stakes, BOLDNESS / (1.0 - m))
        return bool(np.cumsum(np.log1p(bets * (m - x))).max() >= target)

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):  # the capital rises with m, so every larger m is ruled out too
        middle = (low + high) / 2.0
        low, high = (low, middle) if ruled_out(middle) else (middle, high)
    return float((2.0 * high - 1.0) * reach)


def _delong(changes: Array, positive: Array, value: float, confidence: float) -> Drop:
    n, groups = len(changes), (changes[positive], changes[~positive])
    least = min(len(group) for group in groups)
    if least < LEAST_IN_CLASS:
        return Drop(value, -float("inf"), float("inf"), n, DELONG, asymptotic=True)
    error = float(np.sqrt(sum(np.var(group, ddof=1) / len(group) for group in groups)))
    margin = float(stats.norm.ppf(confidence)) * error
    if error == 0.0:  # no sample changed: the bound is that of a share with no case
        margin = upper_share(0, least, confidence)
    return Drop(value, value - margin, value + margin, n, DELONG, asymptotic=True)


def _zero_one(scores: Array) -> bool:
    return bool(np.all((scores == 0.0) | (scores == 1.0)))
