"""The state of the test of drift of one bundle: its windows, and the inputs and answers that differ. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from edgekit.drift.reference import TIES, Reference, Statistic, weights_of
from edgekit.drift.statistics import Draw, subject_of
from edgekit.drift.windows import BUCKETS, LENGTHS, Change, Windows, moved_share, widest_edge

MAX_COUNT = 2**53


class Drift(NamedTuple):
    """A subject that began or ceased to differ from the calibration data.

    Attributes:
        subject: ``input.NAME``, ``score`` or ``class``.
        differs: True where it began.
        statistic: The statistic that was found first, or that ceased last.
        samples: Samples of the window that found it.
        moved: Share of the samples that lie elsewhere than the reference says, 0 to 1.
        message: The finding in words; without values of the data.
    """

    subject: str
    differs: bool
    statistic: str
    samples: int
    moved: float
    message: str


class Stored(msgspec.Struct, frozen=True):
    """The part of a monitor that is kept across restarts.

    Attributes:
        digest: The bundle.
        statistics: Names, in order.
        counts, numbers, raised: As `Windows`.
        open: The message of each subject that differs.
        samples: Samples so far.
    """

    digest: str
    statistics: tuple[str, ...]
    counts: list[list[list[int]]]
    numbers: list[list[int]]
    raised: list[int]
    open: dict[str, str] = {}
    samples: int = 0


class Monitor:
    """The test of one bundle.

    Args:
        digest: Digest of the bundle.
        reference: Its reference.
        error: Probability that any of its subjects ever differs without a drift.

    Attributes:
        open: The message of each subject that differs.
        samples: Samples so far.
    """

    def __init__(self, digest: str, reference: Reference, error: float) -> None:
        self.digest = digest
        self._statistics: Sequence[Statistic] = reference.statistics
        self._windows = Windows(weights_of(self._statistics), error)
        self._rows = {one.name: row for row, one in enumerate(self._statistics)}
        self.open: dict[str, str] = {}
        self.samples = 0

    def add(self, values: Mapping[str, float], draw: Draw) -> list[Drift]:
        """Count a sample; the subjects that begin or cease to differ by it.

        Args:
            values: Its statistics by name; those without a reference are left out.
            draw: Gives a random number from 0 to below 1.
        """
        rows = [self._rows[name] for name in values if name in self._rows]
        if not rows:
            return []
        self.samples += 1
        named = [self._statistics[row] for row in rows]
        buckets = [one.bucket(values[one.name], int(draw() * TIES)) for one in named]
        found = [self._apply(change) for change in self._windows.add(rows, buckets)]
        return [one for one in found if one is not None]

    def stored(self) -> Stored:
        """The part to keep across a restart."""
        windows = self._windows
        return Stored(
            self.digest,
            tuple(self._rows),
            windows.counts.tolist(),
            windows.numbers.tolist(),
            windows.raised.tolist(),
            dict(self.open),
            self.samples,
        )

    def resume(self, stored: Stored) -> bool:
        """Continue from what was kept; False, and nothing is changed, where it is of another bundle or damaged."""
        if stored.digest != self.digest or stored.statistics != tuple(self._rows):
            return False
        rows = len(self._rows)
        try:
            counts, numbers, raised = (
                np.array(one, dtype=np.int64).reshape(shape)
                for one, shape in (
                    (stored.counts, (rows, len(LENGTHS), BUCKETS)),
                    (stored.numbers, (rows, len(LENGTHS))),
                    (stored.raised, (rows,)),
                )
            )
        except (ValueError, OverflowError):
            return False
        low = min(counts.min(), numbers.min() - 1, raised.min() + 1, stored.samples) < 0
        high = counts.max() > max(LENGTHS) or numbers.max() > MAX_COUNT or raised.max() >= len(LENGTHS)
        if low or high or (counts.sum(axis=-1) >= np.array(LENGTHS)).any():
            return False
        self._windows.resume(counts, numbers, raised)
        self.open, self.samples = dict(stored.open), stored.samples
        return True

    def _apply(self, change: Change) -> Drift | None:
        one = self._statistics[change.row]
        subject, samples = subject_of(one.name), sum(change.counts)
        moved = moved_share(change.counts, one.weights)
        if change.differs:
            if subject in self.open:
                return None
            self.open[subject] = message = finding(one, change.counts)
            return Drift(subject, True, one.name, samples, moved, message)
        still = any(subject_of(name) == subject and self._windows.raised[row] >= 0 for name, row in self._rows.items())
        if still or self.open.pop(subject, None) is None:
            return None
        return Drift(subject, False, one.name, samples, moved, f"{samples} samples in a row show no difference")


def finding(statistic: Statistic, counts: Sequence[int]) -> str:
    """The finding on a statistic, in words: shares of samples and of the reference, and no value of the data."""
    samples, edge = sum(counts), widest_edge(counts, statistic.weights)
    here = sum(counts[: edge + 1]) / samples
    there = sum(statistic.weights[: edge + 1]) / sum(statistic.weights)
    side = "above" if here < there else "below"
    shares = (1 - here, 1 - there) if here < there else (here, there)
    return (
        f"{statistic.name}: {shares[0]:.0%} of {samples} samples lie {side} a value {side} which "
        f"{shares[1]:.0%} of the calibration data lie"
    )
