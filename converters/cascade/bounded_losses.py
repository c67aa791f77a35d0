"""Losses between 0 and 1, where certificates of regression and detection will begin. Pure.

A classifier's answer is right or wrong. The answer of a detector or of a regression is wrong by a part: 1 - F1 of its
boxes, or an error as a share of its tolerance. `certify` takes such losses in place of right and wrong and tests their
mean. No command makes certificates of them yet: which loss is meant must first be part of the certificate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from scipy import stats

from edgekit.errors import DataError
from edgekit.tensors import Array


class BoundedLoss(Protocol):
    """The loss of a model's answers."""

    @property
    def name(self) -> str:
        """Its name, for messages."""
        ...

    def __call__(self, outputs: Mapping[str, Array], labels: Array) -> Array:
        """The loss of each sample: (N,), from 0 (right) to 1.

        Args:
            outputs: The model's outputs (N, ...) by name.
            labels: The truth (N, ...).
        """
        ...


def measured(loss: BoundedLoss, outputs: Mapping[str, Array], labels: Array) -> Array:
    """The losses (N,) in float64, for `Pairs.edge_wrong` and `Pairs.cloud_wrong`.

    Raises:
        DataError: they are not one finite number from 0 to 1 for each sample.
    """
    found = np.asarray(loss(outputs, labels), dtype=np.float64)
    if found.shape != (len(labels),) or not np.isfinite(found).all() or found.min() < 0 or found.max() > 1:
        raise DataError(
            f"loss {loss.name!r} gives values of shape {list(found.shape)}, expected one from 0 to 1 for each of the "
            f"{len(labels)} samples"
        )
    return found


def mean_is_below(totals: Array, n: int, limit: float, error: float) -> Array:
    """Whether the mean loss is proven to be below `limit`, wrongly so with a probability of at most `error`.

    The bound of Hoeffding and Bentkus (Bates et al. 2021, "Distribution-free, risk-controlling prediction sets").

    Args:
        totals: Sums of the losses of `n` samples (T,), for each of T thresholds.
        n: Number of samples.
        limit: Claimed mean, between 0 and 1.
        error: Error probability of each test.
    """
    mean = np.clip(np.asarray(totals, dtype=np.float64) / n, 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(mean > 0, mean * np.log(mean / limit), 0.0)
        second = np.where(mean < 1, (1 - mean) * np.log((1 - mean) / (1 - limit)), 0.0)
    hoeffding = np.exp(-n * (first + second))
    bentkus = np.e * stats.binom.cdf(np.ceil(n * mean - 1e-9), n, limit)
    result: Array = (mean < limit) & (np.minimum(hoeffding, bentkus) <= error)
    return result
