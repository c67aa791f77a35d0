"""How long one try of the cloud tier may take, from the times of its last answers. Pure.

The rule is that of TCP's retransmission timer (RFC 6298): a smoothed mean and deviation, and a limit that doubles with
each time-out until an answer comes, so that a tier that has become slower is not given up for ever.
"""

from __future__ import annotations

import msgspec

SHORTEST_TRY_SECONDS = 0.25
# A time-out says something about the cloud tier where the call had at least so much time, and several times the usual.
TIMEOUT_FLOOR_SECONDS, _USUAL_TIMES = 0.1, 2.0
_MEAN_WEIGHT, _DEVIATION_WEIGHT, _DEVIATIONS = 1 / 8, 1 / 4, 4
_MOST_DOUBLINGS = 16


class AnswerTimes(msgspec.Struct, frozen=True):
    """The times of the answers of one model at one endpoint.

    Attributes:
        mean, deviation: Smoothed, in seconds; 0 before the first answer.
        late: Time-outs since the last answer.
    """

    mean: float = 0.0
    deviation: float = 0.0
    late: int = 0

    def answered(self, seconds: float) -> AnswerTimes:
        """With one more answer."""
        if not self.mean:
            return AnswerTimes(seconds, seconds / 2)
        deviation = self.deviation + (abs(seconds - self.mean) - self.deviation) * _DEVIATION_WEIGHT
        return AnswerTimes(self.mean + (seconds - self.mean) * _MEAN_WEIGHT, deviation)

    def timed_out(self) -> AnswerTimes:
        """With one more time-out."""
        return msgspec.structs.replace(self, late=min(self.late + 1, _MOST_DOUBLINGS))

    @property
    def floor_seconds(self) -> float:
        """A shorter wait than this says nothing about the tier."""
        return max(TIMEOUT_FLOOR_SECONDS, _USUAL_TIMES * self.mean)

    def try_seconds(self, longest: float) -> float:
        """The longest wait of one try, where something else can answer; `longest` before the first answer."""
        if not self.mean:
            return longest
        usual = max(self.mean + _DEVIATIONS * self.deviation, _USUAL_TIMES * self.mean, SHORTEST_TRY_SECONDS)
        return min(usual * float(2**self.late), longest)
