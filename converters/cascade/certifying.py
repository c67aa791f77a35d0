"""Certifies the threshold below which an edge model's answers are sent to the cloud. Pure.

Thresholds are tested in a fixed order, from sending everything (or from a start that other samples chose) towards
sending less, and the first failure ends it: the last proven threshold is certified. So the error probability of one
test is the error probability of the choice (Angelopoulos et al. 2021, "Learn then Test", section 3). Every threshold is
tested, not a grid: between two neighbouring scores of the samples the sums do not change.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from scipy import stats

from converters.cascade.bounded_losses import mean_is_below
from converters.cascade.mean_test import LEAST_LABELLED, MOST_UNLABELLED, MeanTest, binomial_test, design
from edgekit.certificate.document import ACCURACY, KEPT_ACCURACY, REGRET
from edgekit.tensors import Array

_RATE_GRID = 100  # thresholds at which the rate of disagreement is bounded
_SEED = 20261130
_POWER = 0.8  # probability of a proof that `samples_needed` asks for


class Pairs(msgspec.Struct, frozen=True):
    """Answers of both models to the same samples.

    Attributes:
        score: Score of the edge model's answer (N,); higher is surer.
        differs: Where the decisions differ (N,).
        edge_wrong, cloud_wrong: Where the decisions are wrong (N,), or losses from 0 to 1 (`bounded_losses`); None
            without labels.
    """

    score: Array
    differs: Array
    edge_wrong: Array | None = None
    cloud_wrong: Array | None = None

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: Array | slice) -> Pairs:
        """The given rows."""
        wrong = (None if one is None else one[rows] for one in (self.edge_wrong, self.cloud_wrong))
        return Pairs(self.score[rows], self.differs[rows], *wrong)

    def without_labels(self) -> Pairs:
        """The same answers without what the labels say."""
        return Pairs(self.score, self.differs)

    def joined(self, more: Pairs) -> Pairs:
        """These answers and more, without labels."""
        return Pairs(np.concatenate([self.score, more.score]), np.concatenate([self.differs, more.differs]))


class Goal(msgspec.Struct, frozen=True):
    """One target: at most `limit` losses, proven with an error probability of `error`.

    The loss of a sample is for ``accuracy`` a wrong answer of the pair, for ``regret`` an answer that is kept and
    differs from the cloud's; both count among all samples. For ``kept-accuracy`` it is a wrong answer among those kept.
    """

    target: str
    limit: float
    error: float


class Curve(msgspec.Struct, frozen=True):
    """Losses at every threshold. Entry i keeps the samples with the i-th smallest distinct score and above.

    Attributes:
        threshold: Ascending (T,); the last is infinity, which sends everything.
        sent: Share of samples that are sent (T,).
        loss: Mean loss of the target (T,); NaN where nothing counts.
    """

    threshold: Array
    sent: Array
    loss: Array


def curve(pairs: Pairs, target: str) -> Curve:
    """The mean loss of a target against the threshold, on these samples.

    Args:
        pairs: Answers, with labels unless the target is ``regret``.
        target: One of the targets of certificates.
    """
    kept, sent = _losses(pairs, target)
    thresholds, first = _thresholds(pairs.score)
    counted = len(pairs) - first if target == KEPT_ACCURACY else np.full(len(first), len(pairs))
    totals = _totals(pairs.score, kept, sent, first)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Curve(thresholds, first / len(pairs), np.where(counted > 0, totals / counted, np.nan))


def naive_threshold(pairs: Pairs, goal: Goal) -> float | None:
    """The lowest threshold whose measured loss is within the limit; it proves nothing. None where there is none."""
    found = curve(pairs, goal.target)
    within = np.flatnonzero(found.loss <= goal.limit)
    return float(found.threshold[within[0]]) if len(within) else None


def certify(goal: Goal, fit: Pairs, certifying: Pairs, unlabelled: Pairs | None = None) -> float | None:
    """The lowest threshold that is proven to meet the goal; infinity sends everything, None meets it nowhere.

    Args:
        goal: The target.
        fit: Samples for the choice of the test and of its start; with labels unless the target is ``regret``.
        certifying: Samples for the proof, not used before; with labels unless the target is ``regret``.
        unlabelled: More samples for the proof, without labels, drawn like the others.
    """
    if _is_bounded(certifying) and goal.target != REGRET:
        return _certify_bounded(goal, fit, certifying)
    extra = None if unlabelled is None else _some(unlabelled, MOST_UNLABELLED * len(certifying))
    if goal.target == REGRET and extra is not None:
        certifying, extra = certifying.without_labels().joined(extra), None
    if extra is not None and (len(certifying) < LEAST_LABELLED or len(extra) < len(certifying) / 2):
        extra = None
    start = _start(goal, fit)
    if goal.target == KEPT_ACCURACY and extra is None:
        return _lowest(certifying.score, _kept_passes(certifying, goal), start)
    if extra is None:
        kept, sent = _losses(certifying, goal.target)
        test = binomial_test(len(certifying), goal.limit, goal.error)
        score, scores = certifying.score, (-kept.astype(np.int64), -sent.astype(np.int64))
    else:
        test = _sharpened(goal, fit, len(certifying), len(extra))
        score = np.concatenate([certifying.score, extra.score])
        scores = _scored(test, goal.target, certifying, extra)
    _, first = _thresholds(score)
    return _lowest(score, _totals(score, *scores, first) >= test.critical, start)


def _some(pairs: Pairs, most: int) -> Pairs:
    """At most so many pairs, by chance: the rows of a file are often in the order of their classes, or of time."""
    return pairs if len(pairs) <= most else pairs.take(np.random.default_rng(_SEED).permutation(len(pairs))[:most])


def _is_bounded(pairs: Pairs) -> bool:
    """True for losses between 0 and 1."""
    return any(one is not None and one.dtype.kind == "f" for one in (pairs.edge_wrong, pairs.cloud_wrong))


def _certify_bounded(goal: Goal, fit: Pairs, certifying: Pairs) -> float | None:
    """As `certify`, for losses between 0 and 1; samples without labels do not sharpen this test."""
    if goal.target != ACCURACY:
        raise ValueError(f"losses between 0 and 1 have no certificate of {goal.target}")
    kept, sent = _losses(certifying, goal.target)
    _, first = _thresholds(certifying.score)
    totals = _totals(certifying.score, kept, sent, first)
    passes = mean_is_below(totals, len(certifying), goal.limit, goal.error)
    return _lowest(certifying.score, passes, _start(goal, fit))


def share_bound(pairs: Pairs, threshold: float, error: float) -> float:
    """Upper bound of the share sent, for all thresholds at once (Dvoretzky, Kiefer, Wolfowitz; Massart 1990)."""
    margin = math.sqrt(math.log(1 / error) / (2 * len(pairs)))
    return min(float(np.mean(pairs.score < threshold)) + margin, 1.0)


def disagreement_bound(pairs: Pairs, fit: Pairs, threshold: float, share: float, error: float) -> float:
    """Upper bound of the share of differing answers among those that are kept; it holds for any choice of threshold.

    The rate among all samples falls with the threshold, so it is at most the rate at the next lower point of a grid,
    which is bounded for all points at once.

    Args:
        pairs: Answers to the certifying samples and those without labels.
        fit: Other samples, which set the grid.
        threshold: The certified threshold.
        share: Upper bound of the share sent, from `share_bound`.
        error: Probability that the bound does not hold, beside that of `share`.
    """
    if share >= 1.0:
        return 1.0
    grid = np.concatenate([[-np.inf], np.quantile(fit.score, np.arange(1, _RATE_GRID) / _RATE_GRID)])
    lower = float(grid[grid <= threshold].max())
    count, n = int(np.sum(pairs.differs & (pairs.score >= lower))), len(pairs)
    among_all = 1.0 if count >= n else float(stats.beta.isf(error / len(grid), count + 1, n - count))
    return min(among_all / (1 - share), 1.0)


def samples_needed(goal: Goal, pairs: Pairs) -> int | None:
    """About how many certifying samples prove the goal in four cases of five; None where no number would do.

    From the loss that was measured at the best threshold, by the normal approximation. Sending everything is no answer.
    """
    found = curve(pairs, goal.target)
    found = Curve(found.threshold[:-1], found.sent[:-1], found.loss[:-1])
    if not np.any(found.loss < goal.limit):
        return None
    kept, loss = np.ones(len(found.sent)), found.loss
    if goal.target == KEPT_ACCURACY:  # a few kept answers without a loss say little: Laplace's estimate
        kept = 1 - found.sent
        counted = len(pairs) * kept
        smoothed = (loss * counted + 1) / (counted + 2)
        loss = smoothed if np.any(smoothed < goal.limit) else loss
    room = np.where(loss < goal.limit, goal.limit - loss, np.nan)
    z = stats.norm.isf(goal.error) * np.sqrt(goal.limit * (1 - goal.limit))
    z = z + stats.norm.ppf(_POWER) * np.sqrt(loss * (1 - loss))
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = (z / room) ** 2 / kept
    needed = np.maximum(needed, math.log(goal.error) / math.log1p(-goal.limit) / np.maximum(kept, 1e-9))
    return math.ceil(float(np.nanmin(np.where(np.isfinite(needed), needed, np.nan))))


def _losses(pairs: Pairs, target: str) -> tuple[Array, Array]:
    """Loss of each sample where it is kept, and where it is sent."""
    if target == REGRET:
        return pairs.differs, np.zeros(len(pairs), bool)
    assert pairs.edge_wrong is not None  # the caller checked that there are labels
    assert pairs.cloud_wrong is not None
    return pairs.edge_wrong, np.zeros(len(pairs), bool) if target == KEPT_ACCURACY else pairs.cloud_wrong


def _thresholds(score: Array) -> tuple[Array, Array]:
    """Every distinct threshold, and the number of samples below it; ascending, the last is infinity."""
    values, counts = np.unique(score, return_counts=True)
    return np.append(values, np.inf), np.concatenate([[0], np.cumsum(counts)])


def _totals(score: Array, kept: Array, sent: Array, first: Array) -> Array:
    """Sum of `sent` (N,) over the samples below each threshold, and of `kept` (N,) over the others."""
    order = np.argsort(score, kind="stable")
    kind = np.float64 if "f" in (kept.dtype.kind, sent.dtype.kind) else np.int64
    below = np.concatenate([[0], np.cumsum(sent[order], dtype=kind)])
    lower = np.concatenate([[0], np.cumsum(kept[order], dtype=kind)])
    result: Array = (below + lower[-1] - lower)[first]
    return result


def _lowest(score: Array, passes: Array, start: float) -> float | None:
    """The lowest threshold of the unbroken run of proven ones that begins at `start`."""
    thresholds, _ = _thresholds(score)
    begin = int(np.searchsorted(thresholds, start))
    run = passes[: begin + 1][::-1]
    length = len(run) if run.all() else int(np.argmin(run))
    return float(thresholds[begin + 1 - length]) if length else None


def _start(goal: Goal, fit: Pairs) -> float:
    """Where the tests begin: at infinity, or where `fit` has the strongest evidence, if infinity is bound to fail."""
    found = curve(fit, goal.target)
    if goal.target == REGRET or (goal.target == ACCURACY and found.loss[-1] <= goal.limit):
        return math.inf
    counted = len(fit) * (1 - found.sent if goal.target == KEPT_ACCURACY else np.ones(len(found.sent)))
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = np.sqrt(np.maximum(found.loss * (1 - found.loss), 1 / counted) / counted)
        evidence = (goal.limit - found.loss) / deviation
    if not np.any(np.isfinite(evidence)):
        return math.inf
    return float(found.threshold[np.nanargmax(np.where(np.isfinite(evidence), evidence, np.nan))])


def _kept_passes(pairs: Pairs, goal: Goal) -> Array:
    """Whether the test of Clopper and Pearson proves the accuracy of what is kept, at each threshold."""
    kept, sent = _losses(pairs, goal.target)
    _, first = _thresholds(pairs.score)
    losses, counted = _totals(pairs.score, kept, sent, first), len(pairs) - first
    passes: Array = (counted > 0) & (stats.binom.cdf(losses, np.maximum(counted, 1), goal.limit) <= goal.error)
    return passes


def _strata(pairs: Pairs, target: str) -> tuple[Array, Array]:
    """Stratum of each sample where it is kept, and where it is sent."""
    differs = pairs.differs.astype(np.int64)
    return differs, (np.full(len(pairs), 2) if target == KEPT_ACCURACY else 2 * differs)


def _sharpened(goal: Goal, fit: Pairs, n: int, extra: int) -> MeanTest:
    """The test for the threshold that `fit` expects to be certified."""
    found = curve(fit, goal.target)
    margin = stats.norm.isf(goal.error) * np.sqrt(goal.limit * (1 - goal.limit) / n)
    if goal.target == KEPT_ACCURACY:
        margin = margin / np.sqrt(np.maximum(1 - found.sent, 1 / len(fit)))
    within = np.flatnonzero(found.loss <= goal.limit - margin)
    threshold = found.threshold[within[0]] if len(within) else found.threshold[np.nanargmin(found.loss)]
    is_kept = fit.score >= threshold
    stratum = np.where(is_kept, *_strata(fit, goal.target))
    loss = np.where(is_kept, *_losses(fit, goal.target)).astype(np.int64)
    shares = np.bincount(2 * stratum + loss, minlength=6).reshape(3, 2) / len(fit)
    kept, sent = _losses(fit, goal.target)  # the risks hardly depend on the score, so all samples tell them
    risks = [_mean(kept[~fit.differs]), _mean(kept[fit.differs]), _mean(sent[fit.differs])]
    values = np.array([[-goal.limit, 1 - goal.limit]] * 3)
    if goal.target == KEPT_ACCURACY:
        values[2] = 0.0
    return design(values, shares, np.array(risks), n=n, extra=extra, error=goal.error)


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else 0.0


def _scored(test: MeanTest, target: str, certifying: Pairs, unlabelled: Pairs) -> tuple[Array, Array]:
    """Score of each sample where it is kept and where it is sent; the certifying samples first."""
    labelled, plain = np.array(test.labelled), np.array(test.unlabelled)
    pairs = zip(_strata(certifying, target), _losses(certifying, target), _strata(unlabelled, target), strict=True)
    kept, sent = (
        np.concatenate([labelled[stratum, loss.astype(np.int64)], plain[other]]) for stratum, loss, other in pairs
    )
    return kept, sent
