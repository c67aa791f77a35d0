"""The threshold of each device, chosen from data, and whether the trained models can show what the demo claims."""

from __future__ import annotations

import msgspec
import numpy as np

from edgekit.demo.answers import Answers
from edgekit.tensors import Array

CLOUD_SHARE = 0.15  # of the rows: enough of them on both sides of the moment at which the cloud tier stops
MIN_UNSURE = 10


class Outlook(msgspec.Struct, frozen=True):
    """The expected figures of one device on the held-out rows, from the answers of its bundle and of the cloud's.

    Attributes:
        unsure: Rows with a score below the threshold.
        rows: All rows.
        local, helped, cloud: Share of right answers: by the device's model, with the cloud's for the unsure rows, and
            by the cloud's model alone.
    """

    unsure: int
    rows: int
    local: float
    helped: float
    cloud: float


def choose_threshold(scores: Array) -> float:
    """The threshold that sends nearest to CLOUD_SHARE of the rows to the cloud, but some rows and not all of them.

    Args:
        scores: Of the device's model on labelled rows that are not the held-out ones (N,).

    Raises:
        ValueError: all scores are equal, so that no threshold divides them.
    """
    values, counts = np.unique(np.asarray(scores, np.float64), return_counts=True)
    if len(values) < 2:
        raise ValueError("all scores are equal")
    below = np.cumsum(counts)[:-1] / counts.sum()  # the share of scores below values[1:]
    return float(values[1:][np.abs(below - CLOUD_SHARE).argmin()])


def outlook(device: Answers, cloud: Answers, labels: Array, threshold: float) -> Outlook:
    """What a device with this threshold will answer to the held-out rows with these labels (N,)."""
    ours, theirs = np.asarray(device.labels), np.asarray(cloud.labels)
    unsure = np.asarray(device.scores) < threshold
    return Outlook(
        unsure=int(unsure.sum()),
        rows=len(labels),
        local=float(np.mean(ours == labels)),
        helped=float(np.mean(np.where(unsure, theirs, ours) == labels)),
        cloud=float(np.mean(theirs == labels)),
    )


def shortcomings(found: dict[str, Outlook]) -> list[str]:
    """Why these models cannot show what the demo claims; empty where they can."""
    faults = []
    for target, one in found.items():
        if one.cloud <= one.local:
            faults.append(f"the cloud model ({one.cloud:.3f}) is not better than that of {target} ({one.local:.3f})")
        if one.helped <= one.local:
            faults.append(f"fallback ({one.helped:.3f}) does not improve {target} ({one.local:.3f})")
        if not MIN_UNSURE <= one.unsure <= one.rows - MIN_UNSURE:
            faults.append(f"{target} is unsure of {one.unsure} of {one.rows} rows")
    return faults
