"""Counts and pairs that the devices of a rollout with gates report about the previous and the new model. Pure rules."""

from __future__ import annotations

import msgspec

from edgekit.mqtt.messages import Behaviour, Running
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


class Beside(msgspec.Struct, frozen=True, array_like=True):
    """The part of a device in one gate that compares with a control cohort, see `control_cohort`.

    Attributes:
        control: Its pairs as a device of the control cohort: before the rollout, and beside the new model's devices.
        own: Its pairs of the new model: before the rollout, and now.
        steps: Number of its comparisons by the difference, from -2 to 2 in steps of a quarter; empty for none.
        taken_good, taken: Good observations, and all, of `Observed.fresh` that are in a pair.
    """

    control: Pairs = Pairs()
    own: Pairs = Pairs()
    steps: tuple[int, ...] = ()
    taken_good: int = 0
    taken: int = 0


class Observed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The counts and pairs that a device of a rollout with gates has reported.

    Attributes:
        previous: Digest of the model before; empty while it is not known.
        baseline, candidate: Counts of the previous model and of the new one.
        pairs: Pairs by the text of the gate. With a control cohort, those that were made without it.
        history: Counts of the previous model when the rollout saw the device first; None without a control cohort.
        fresh: What its last report added to the counts of one model, as far as it is not older than an hour.
        fresh_of: Digest of that model.
        fresh_at: When its counts changed last, in wall clock seconds.
        beside: Comparisons with the control cohort by the text of the gate.
    """

    previous: str = ""
    baseline: Counted = Counted()
    candidate: Counted = Counted()
    pairs: dict[str, Pairs] = {}
    history: Behaviour | None = None
    fresh: Behaviour = _NOTHING
    fresh_of: str = ""
    fresh_at: float = 0.0
    beside: dict[str, Beside] = {}

    def after(self, running: Running, candidate: str) -> Observed:
        """The observations after a report; `candidate` is the digest of the new model."""
        previous = self.previous or _previous(running, candidate)
        reported = running.behaviour
        baseline = self.baseline.after(reported[previous]) if previous in reported else self.baseline
        new = self.candidate.after(reported[candidate]) if candidate in reported else self.candidate
        return msgspec.structs.replace(self, previous=previous, baseline=baseline, candidate=new)


def added(before: Behaviour, after: Behaviour) -> Behaviour:
    """The counts that came to `before`."""
    names = [name for name in Behaviour.__struct_fields__ if name != "slower"]
    counts = {name: getattr(after, name) - getattr(before, name) for name in names}
    slower = zip(_padded(after, len(after.slower)), _padded(before, len(after.slower)), strict=True)
    return Behaviour(**counts, slower=tuple(new - old for new, old in slower))


def _previous(running: Running, candidate: str) -> str:
    """The digest of the model before: what runs now, or after the switch what ran last."""
    if running.digest and running.digest != candidate:
        return running.digest
    others = [digest for digest in running.behaviour if digest != candidate]
    return others[-1] if others else ""


def _padded(behaviour: Behaviour, width: int) -> tuple[int, ...]:
    return (*behaviour.slower, *(0,) * (width - len(behaviour.slower)))[:width]
