"""Recognizes labels or inputs that do not fit the model: a drop from answers that are wrong anyway proves nothing."""

from __future__ import annotations

import math

import numpy as np

from converters.quality.metrics import ACCURACY
from edgekit.tensors import Array

FEWEST = 20  # samples that a warning needs
DEVIATIONS = 2.0  # of a share, within which the two are not told apart


def baseline_note(metric: str, labels: Array | None, value: float) -> str:
    """A warning where the most frequent label alone would be right more often than the float model; else empty.

    Args:
        metric: Name of the metric of the decision output.
        labels: Its labels (N,); others, and those of fewer than `FEWEST` samples, give no warning.
        value: The float model's accuracy on these samples.
    """
    if metric != ACCURACY or labels is None or labels.ndim != 1 or len(labels) < FEWEST:
        return ""
    found, counts = np.unique(labels, return_counts=True)
    share = float(counts.max()) / len(labels)
    if value + DEVIATIONS * math.sqrt(share * (1.0 - share) / len(labels)) >= share:
        return ""
    common = found[counts.argmax()]
    return (
        f"the float model is right on {value:.0%} of the proof samples, and always answering {common} on "
        f"{share:.0%}: its labels, their order or its preprocessing may be wrong, and no drop from such answers proves "
        "anything; --metric agreement compares with the float model instead"
    )
