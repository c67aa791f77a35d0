"""Why a device keeps a sample, and how much each reason is worth where there is no room for all. Pure."""

from __future__ import annotations

import enum


class SampleReason(str, enum.Enum):
    """Why an answer was kept as a sample; the later ones are worth more."""

    RANDOM = "random"  # by chance, whatever the answer was
    EXPLORED = "explored"  # a sure answer that was also sent to the cloud tier, which agreed
    UNSURE = "unsure"  # the score was below the threshold
    DISAGREEMENT = "disagreement"  # an unsure answer, and the cloud tier decided otherwise
    REFUTED = "refuted"  # a sure answer, and the cloud tier decided otherwise


HARD = (SampleReason.UNSURE, SampleReason.EXPLORED, SampleReason.DISAGREEMENT, SampleReason.REFUTED)
REASONS = tuple(one.value for one in SampleReason)
_VALUES = {reason: place for place, reason in enumerate(SampleReason, 1)}


def value_of(reason: SampleReason) -> int:
    """The worth of a reason, from 1; of two samples, the one of the lower value is given up first."""
    return _VALUES[reason]
