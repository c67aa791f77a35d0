"""Chooses the threshold of each device, and checks that the trained models can show the demo's claims."""

from __future__ import annotations

import msgspec
import numpy as np

from edgekit.demo.answers import Answers
from edgekit.tensors import Array

CLOUD_SHARE = 0.15  # of the rows: enough before and after the cloud tier stops in step 6
MIN_UNSURE = 10


class Outlook(msgspec.Struct, frozen=True):
    """Expected figures of one device on the test rows, from the answers of its bundle and of the cloud's bundle.

    Attributes:
        unsure: Number of rows with a score below the threshold.
        rows: Number of rows.
        local: Share of right answers of the device's model.
        helped: The same, with the cloud's answers for the unsure rows.
        cloud: Share of right answers of the cloud's model.
    """

    unsure: int
    rows: int
    local: float
    helped: float
    cloud: float


def choose_threshold(scores: Array) -> float:
    """The threshold whose share of rows for the cloud is nearest to CLOUD_SHARE; at least one row, never all rows.

    Args:
        scores: Scores of the device's model on labelled rows other than the test rows (N,).

    Raises:
        ValueError: all scores are equal, so no threshold divides them.
    """
    values, counts = np.unique(np.asarray(scores, np.float64), return_counts=True)
    if len(values) < 2:
        raise ValueError("all scores are equal")
    below = np.cumsum(counts)[:-1] / counts.sum()  # share of scores below values[1:]
    return float(values[1:][np.abs(below - CLOUD_SHARE).argmin()])


def outlook(device: Answers, cloud: Answers, labels: Array, threshold: float) -> Outlook:
    """Expected figures of a device with this threshold on the test rows with these labels (N,)."""
    ours, theirs = np.asarray(device.labels), np.asarray(cloud.labels)
    unsure = np.asarray(device.scores) < threshold
    return Outlook(
        unsure=int(unsure.sum()),
        rows=len(labels),
        local=float(np.mean(ours == labels)),
        helped=float(np.mean(np.where(unsure, theirs, ours) == labels)),
        cloud=float(np.mean(theirs == labels)),
    )


def shortcomings(outlooks: dict[str, Outlook]) -> list[str]:
    """Reasons why the models cannot show the demo's claims, by target; empty if they can."""
    faults = []
    for target, one in outlooks.items():
        if one.cloud <= one.local:
            faults.append(f"the cloud model ({one.cloud:.3f}) is not better than that of {target} ({one.local:.3f})")
        if one.helped <= one.local:
            faults.append(f"fallback ({one.helped:.3f}) does not improve {target} ({one.local:.3f})")
        if not MIN_UNSURE <= one.unsure <= one.rows - MIN_UNSURE:
            faults.append(f"{target} is unsure of {one.unsure} of {one.rows} rows")
    return faults
