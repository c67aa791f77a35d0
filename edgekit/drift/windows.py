"""The sequential test of drift, for any number of statistics at once. Pure; numpy only computes.

For samples from the distribution of the calibration data, the law of their buckets is known whatever that distribution
is: the shares of the buckets follow a Dirichlet law with the reference's weights (the spacings of order statistics,
Wilks 1941). So the next sample falls into bucket k with probability (a_k + m_k) / (n + 1 + m), where a_k are the
weights and m_k the counts of the m samples so far. It takes into account that the reference has only n samples.

The evidence of a window is the likelihood ratio of an alternative to this law: a mixture of Dirichlet-multinomials
(ALTERNATIVES). It is a nonnegative martingale that begins at 1, so it ever reaches 1 / e with a probability of at most
e (Ville's inequality), looked at after each sample. Window j of each length has its part of the error probability,
1 / (j (j + 1)) of it, and these parts add up to one: the promise holds for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgekit.drift.reference import LEVELS
from edgekit.tensors import Array

BUCKETS = len(LEVELS) + 1
LENGTHS = (128, 1024, 8192)  # samples of a window; a drift inside a long one is found late, a small one in no short one
ALTERNATIVES = (0.0, 4.0, 40.0)  # weight of a Dirichlet law around the reference; 0: half a sample in each bucket
LEAST = 0.1  # smallest difference that matters: the share of samples in other buckets than the reference says
_FLAT = 0.5


class Change(NamedTuple):
    """A statistic that began or ceased to differ.

    Attributes:
        row: Index of the statistic.
        differs: True where it began.
        length: Length of the window.
        counts: Samples of the window by bucket.
    """

    row: int
    differs: bool
    length: int
    counts: tuple[int, ...]


class Windows:
    """The windows of some statistics.

    A statistic begins to differ when the evidence of one of its windows reaches the limit, and the difference matters.
    All its windows then begin anew. It ceases to differ when a whole window of this length, or of a shorter one that
    found the same since, ends without evidence.

    Args:
        weights: Weights of the buckets, (statistics, BUCKETS).
        error: Probability that a statistic, whichever, ever begins to differ without a drift; 0 to 1, exclusive.

    Attributes:
        counts: Samples of each window by bucket, (statistics, lengths, BUCKETS).
        numbers: Number of each window, from 1 on, (statistics, lengths).
        raised: Index of the length that found each statistic to differ; -1 where none does, (statistics,).
    """

    def __init__(self, weights: Array, error: float) -> None:
        rows, lengths = len(weights), len(LENGTHS)
        self._null = weights[:, None, :]
        self._total = self._null.sum(axis=-1)
        share = weights / weights.sum(axis=-1, keepdims=True)
        self._others = [_FLAT + 0 * share if not weight else weight * share for weight in ALTERNATIVES]
        self._sums = [float(one[:1].sum()) for one in self._others]
        self._limit = math.log(max(rows, 1) * lengths / error)
        self.counts = np.zeros((rows, lengths, BUCKETS), dtype=np.int64)
        self.numbers = np.ones((rows, lengths), dtype=np.int64)
        self.raised = np.full(rows, -1, dtype=np.int64)
        self._logs = np.zeros((len(ALTERNATIVES), rows, lengths))

    def resume(self, counts: Array, numbers: Array, raised: Array) -> None:
        """Continue with stored windows, arrays as the attributes.

        Samples after the last storing are lost, so the windows may go on another way than before. Each takes a new
        number, and with it an own part of the error probability.
        """
        self.counts[:], self.numbers[:], self.raised[:] = counts, numbers + 1, raised
        samples = self.counts.sum(axis=-1)
        null = _log_likelihood(self.counts, samples, self._null, self._total)
        for i, other in enumerate(self._others):
            self._logs[i] = _log_likelihood(self.counts, samples, other[:, None, :], self._sums[i]) - null

    def add(self, rows: Sequence[int], buckets: Sequence[int]) -> list[Change]:
        """Count one sample.

        Args:
            rows: The statistics of the sample, by index.
            buckets: The bucket of each.
        """
        which, bucket = np.asarray(rows, dtype=np.intp), np.asarray(buckets, dtype=np.intp)
        seen = self.counts[which, :, bucket]  # (rows, lengths)
        total = self.counts[which].sum(axis=-1)
        null = np.log((self._null[which, :, bucket] + seen) / (self._total[which] + total))
        for i, other in enumerate(self._others):
            self._logs[i, which] += np.log((other[which, bucket][:, None] + seen) / (self._sums[i] + total)) - null
        self.counts[which, :, bucket] += 1
        numbers = self.numbers[which]
        limits = self._limit + np.log(numbers) + np.log(numbers + 1)
        found = self._evidence(which) >= limits
        ended = total + 1 >= np.array(LENGTHS)
        if not (found.any() or ended.any()):
            return []
        changes = [self._close(row, found[i], ended[i]) for i, row in enumerate(which)]
        return [change for change in changes if change is not None]

    def _evidence(self, which: Array) -> Array:
        """The logarithm of the evidence of each window, (rows, lengths)."""
        logs = self._logs[:, which]
        most: Array = logs.max(axis=0)
        evidence: Array = most + np.log(np.exp(logs - most).mean(axis=0))
        return evidence

    def _close(self, row: int, found: Array, ended: Array) -> Change | None:
        """End the windows of a statistic that found something or are full."""
        for i, length in enumerate(LENGTHS):
            if found[i] and moved_share(self.counts[row, i], self._null[row, 0]) >= LEAST:
                counts = tuple(int(count) for count in self.counts[row, i])
                before, self.raised[row] = self.raised[row], i if self.raised[row] < 0 else min(i, self.raised[row])
                self._begin(row, np.ones(len(LENGTHS), dtype=bool))
                return Change(int(row), True, length, counts) if before < 0 else None
        change, raised = None, int(self.raised[row])
        if raised >= 0 and ended[raised]:
            counts = tuple(int(count) for count in self.counts[row, raised])
            change, self.raised[row] = Change(int(row), False, LENGTHS[raised], counts), -1
            ended = np.ones(len(LENGTHS), dtype=bool)  # what is left of the drift in longer windows is no news
        self._begin(row, ended)
        return change

    def _begin(self, row: int, which: Array) -> None:
        """Begin the windows of a statistic anew where `which` (lengths,) is true."""
        self.counts[row, which] = 0
        self.numbers[row, which] += 1
        self._logs[:, row, which] = 0.0


def moved_share(counts: Array | Sequence[int], weights: Array | Sequence[int]) -> float:
    """The share of samples that are in other buckets than the reference says, 0 to 1 (total variation)."""
    difference = np.asarray(counts) / max(np.sum(counts), 1) - np.asarray(weights) / np.sum(weights)
    return float(np.abs(difference).sum() / 2)


def widest_edge(counts: Array | Sequence[int], weights: Array | Sequence[int]) -> int:
    """The edge where the shares below it differ most between samples and the reference, by index."""
    here, there = (np.cumsum(one)[:-1] / max(np.sum(one), 1) for one in (counts, weights))
    return int(np.argmax(np.abs(here - there)))


def _log_likelihood(counts: Array, samples: Array, weights: Array, total: Array | float) -> Array:
    """The logarithm of the Dirichlet-multinomial likelihood of one order of the samples, (rows, lengths)."""
    gained = _log_gamma(weights + counts) - _log_gamma(weights + np.zeros_like(counts))
    likelihood: Array = gained.sum(axis=-1) + _log_gamma(total) - _log_gamma(total + samples)
    return likelihood


_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])
