"""Counts and pairs that the devices of a rollout with gates report about the previous and the new model. Pure rules."""

from __future__ import annotations

import msgspec

from edgekit.mqtt.messages import Behaviour
from edgekit.rollout.gate_pairs import Pairs

_NOTHING = Behaviour()


class Counted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A bundle's counts over restarts of the agent.

    Attributes:
        total: The counts since the device is observed.
        last: The counts that it reported last; they begin anew when its agent starts.
    """

    total: Behaviour = _NOTHING
    last: Behaviour = _NOTHING

    def after(self, reported: Behaviour) -> Counted:
        """The counts after a report."""
        if reported == self.last:
            return self
        names = [name for name in Behaviour.__struct_fields__ if name != "slower"]
        restarted = any(getattr(reported, name) < getattr(self.last, name) for name in names)
        last = _NOTHING if restarted else self.last
        counts = {name: getattr(self.total, name) + getattr(reported, name) - getattr(last, name) for name in names}
        width = max(len(reported.slower), len(self.total.slower))
        sums = zip(_padded(self.total, width), _padded(reported, width), _padded(last, width), strict=True)
        slower = tuple(total + new - old for total, new, old in sums)
        return Counted(Behaviour(**counts, slower=slower), reported)


class Observed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The counts and pairs that a device of a rollout with gates has reported.

    Attributes:
        previous: Digest of the model before; empty while it is not known.
        baseline, candidate: Counts of the previous model and of the new one.
        pairs: Pairs by the text of the gate.
    """

    previous: str = ""
    baseline: Counted = Counted()
    candidate: Counted = Counted()
    pairs: dict[str, Pairs] = {}


def _padded(behaviour: Behaviour, width: int) -> tuple[int, ...]:
    return (*behaviour.slower, *(0,) * (width - len(behaviour.slower)))[:width]
