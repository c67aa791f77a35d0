"""Values of the rollout machine: states, progress of devices, events, effects and steps."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from edgekit.mqtt.messages import Outcome, Running, Shadow
from edgekit.rollout.allowance import Allowance
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.gate_observed import Observed
from edgekit.rollout.plan import RolloutPlan

MAX_DECISIONS = 100


class RolloutState(str, enum.Enum):
    """State of a rollout."""

    DRAFT = "DRAFT"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    ABORTED = "ABORTED"


class DeviceState(str, enum.Enum):
    """State of one device in a rollout.

    ASSIGNED: the device has the assignment and has not reported an outcome; JSON and the database call this ``TOLD``.
    WAITING: the device waits on purpose, for example in its quiet hours; neither a success nor a failure.
    NOT_REACHED: it has waited for longer than the plan allows; neither a success nor a failure.
    SKIPPED: the model has no bundle for the device's target.
    CANCELLED: an operator took the device out of the rollout.
    RETURNED: the rollout has stopped itself, and the device runs its earlier bundle.
    """

    PENDING = "PENDING"
    ASSIGNED = "TOLD"  # the value is stored in databases and printed as JSON
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    NOT_REACHED = "NOT_REACHED"
    SKIPPED = "SKIPPED"
    CANCELLED = "CANCELLED"
    RETURNED = "RETURNED"


IN_FLIGHT = (DeviceState.ASSIGNED, DeviceState.WAITING)  # it can still succeed before its time is over
UNDECIDED = (*IN_FLIGHT, DeviceState.FAILED, DeviceState.NOT_REACHED)  # has the assignment and does not run the bundle
UNASSIGNED = (DeviceState.PENDING, DeviceState.SKIPPED)
OUTSIDE = (DeviceState.SKIPPED, DeviceState.CANCELLED)  # not in the rollout: waves are sizes of the others


class DeviceProgress(msgspec.Struct, frozen=True, rename={"assigned_at": "told_at"}):
    """One device in a rollout. Times are wall clock seconds of the controller.

    Attributes:
        state: The device's state.
        digest: Digest of the bundle for its target; empty if the model has none.
        assigned_at: Start of its deadline; 0 before it has the assignment. Stored as ``told_at``.
        wave: Index of the wave in which it got the assignment.
        reason: Why it failed, waits or was skipped, for people.
        old_outcome: Time stamp of a failure of the same digest before this assignment; that failure does not count.
        excused: True if it failed before an operator resumed the rollout; it does not count towards the thresholds.
        at: Time of its last change of state; 0 where an earlier release stored it.
        waiting_since: Since when it waits; 0 while it does not.
        waited: Seconds of its earlier waits; they do not count towards its deadline.
        verdict: The state that counted, where the device changed afterwards: an assigned device that activated the
            bundle before an abort, a failed one that succeeded late. None where nothing changed afterwards.
        verdict_at, verdict_reason: Time and reason of that state.
        canary: True if it comes before the others.
        chosen: Index of the first wave whose filter it matches, of those waves; None if it matches none.
        observed: What it reported for the gates of the rollout; None without gates.
        shadowing: True while it compares the bundle with its active one, and may not activate it.
        shadow: The last report of that comparison; None before the first.
        can_shadow: Its agent is new enough to compare.
        old_shadow: Number of a comparison that it reported before this assignment; that one does not count.
    """

    state: DeviceState
    digest: str = ""
    assigned_at: float = 0.0
    wave: int = 0
    reason: str = ""
    old_outcome: float | None = None
    excused: bool = False
    at: float = 0.0
    waiting_since: float = 0.0
    waited: float = 0.0
    verdict: DeviceState | None = None
    verdict_at: float = 0.0
    verdict_reason: str = ""
    canary: bool = False
    chosen: int | None = None
    observed: Observed | None = None
    shadowing: bool = False
    shadow: Shadow | None = None
    can_shadow: bool = False
    old_shadow: int | None = None

    @property
    def late(self) -> bool:
        """True if it succeeded after the rollout had counted it otherwise."""
        return self.state is DeviceState.SUCCEEDED and self.verdict not in (None, DeviceState.SUCCEEDED)


class Decision(msgspec.Struct, frozen=True):
    """A change of a rollout's state. It is never changed afterwards; the counts of devices go on changing.

    Attributes:
        at: Wall clock seconds.
        state: The state from then on.
        wave: Index of the wave.
        reason: Why, for people.
        counts: Number of devices by state at that time.
    """

    at: float
    state: RolloutState
    wave: int = 0
    reason: str = ""
    counts: dict[str, int] = {}


class Rollout(msgspec.Struct, frozen=True):
    """The complete state of a rollout.

    Attributes:
        id: Rises with every rollout.
        model, version: The model and the version that is rolled out.
        plan: Waves and thresholds.
        cohort: The devices that the rollout selects.
        state: State of the machine.
        wave: Index of the current wave.
        reason: Why it is paused or aborted, for people.
        stopped_itself: True if failures or a gate stopped it, false if an operator did.
        approved: Number of waves that were approved, where the plan asks for it.
        awaits_approval: True while the next wave waits for nothing but an approval.
        accepted_gates: Gates that had failed when an operator resumed it; they stop nothing any more.
        devices: Progress by device name.
        decisions: Its last changes of state, oldest first.
        fault: Why its stored state cannot be read; empty if it can. Such a rollout can only be aborted.
        without_control: True while the control cohort that the plan asks for is too small.
        allowance: How many devices might get the assignment when some got it last; None without a rate.
    """

    id: int
    model: str
    version: str
    plan: RolloutPlan = RolloutPlan()
    cohort: Cohort = Cohort()
    state: RolloutState = RolloutState.DRAFT
    wave: int = 0
    reason: str = ""
    stopped_itself: bool = False
    devices: dict[str, DeviceProgress] = {}
    decisions: tuple[Decision, ...] = ()
    approved: int = 0
    awaits_approval: bool = False
    accepted_gates: tuple[str, ...] = ()
    fault: str = ""
    without_control: bool = False
    allowance: Allowance | None = None

    def counts(self) -> dict[str, int]:
        """Number of devices by state, with zeros."""
        counts = {state.value: 0 for state in DeviceState}
        for progress in self.devices.values():
            counts[progress.state.value] += 1
        return counts

    @property
    def ended(self) -> bool:
        """True when no event can change its state any more."""
        return self.state in (RolloutState.FINISHED, RolloutState.ABORTED)

    @property
    def decision(self) -> Decision | None:
        """The last decision; None where an earlier release stored the rollout."""
        return self.decisions[-1] if self.decisions else None


def decided(rollout: Rollout, state: RolloutState, now: float, *, reason: str = "", itself: bool = False) -> Rollout:
    """The rollout after a decision, which is noted with the counts of this moment.

    Args:
        rollout: The rollout before.
        state: Its new state.
        now: Wall clock seconds.
        reason: Why, for people.
        itself: True if failures or a gate stopped it.
    """
    decision = Decision(now, state, rollout.wave, reason, {k: v for k, v in rollout.counts().items() if v})
    decisions = (*rollout.decisions, decision)[-MAX_DECISIONS:]
    return msgspec.structs.replace(rollout, state=state, reason=reason, stopped_itself=itself, decisions=decisions)


# --- events


class DeviceStatus(msgspec.Struct, frozen=True):
    """Last report of one device about this rollout's model.

    Attributes:
        digest: Digest of the bundle for its target; empty if the model has none.
        running: What the device runs, as it last reported; None before its first report.
        outcome: Outcome of the last deployment of the model, as the device reported it.
        canary: True if it is one of the plan's canaries.
        chosen: Index of the first wave whose filter it matches, of those waves; None if it matches none.
        can_shadow: Its agent is new enough to compare the bundle with its active one.
    """

    digest: str
    running: Running | None = None
    outcome: Outcome | None = None
    canary: bool = False
    chosen: int | None = None
    can_shadow: bool = False


class Started(msgspec.Struct, frozen=True):
    """An operator started it."""


class Surveyed(msgspec.Struct, frozen=True):
    """A survey of the fleet: `devices` holds the devices that changed since the last survey, and may be empty."""

    devices: Mapping[str, DeviceStatus] = {}


class Paused(msgspec.Struct, frozen=True):
    """An operator paused it."""

    reason: str = "paused by an operator"


class Resumed(msgspec.Struct, frozen=True):
    """An operator resumed it and accepted the failures up to now."""


class Aborted(msgspec.Struct, frozen=True):
    """An operator aborted it."""

    reason: str = "aborted by an operator"


class Approved(msgspec.Struct, frozen=True):
    """An operator approved the wave that waits for it."""


class Retried(msgspec.Struct, frozen=True):
    """An operator asked for another attempt on the devices that failed or were not reached."""


class Forced(msgspec.Struct, frozen=True):
    """An operator decided that devices no longer wait until their users agree."""


class Cancelled(msgspec.Struct, frozen=True):
    """An operator took a device out of the rollout."""

    device: str


RolloutEvent: TypeAlias = "Started | Surveyed | Paused | Resumed | Aborted | Approved | Retried | Forced | Cancelled"


# --- effects


class Assign(msgspec.Struct, frozen=True):
    """Assign this rollout's bundle to the device."""

    device: str


class Revert(msgspec.Struct, frozen=True):
    """Restore the device's previous assignment for the model, or remove the model if there was none."""

    device: str


class Return(msgspec.Struct, frozen=True):
    """As Revert, for a device that may have committed the bundle: it may go back to a lower version."""

    device: str


class Keep(msgspec.Struct, frozen=True):
    """The device activated the bundle before the abort reached it: assign it again, if nothing else was since."""

    device: str


Effect: TypeAlias = "Assign | Revert | Return | Keep"


class RolloutStep(msgspec.Struct, frozen=True):
    """Result of a step.

    Attributes:
        state: The new state.
        effects: What the caller must do, in this order.
        wake_at: Wall clock seconds of the next survey that is due without a new report; None if none is.
    """

    state: Rollout
    effects: tuple[Effect, ...] = ()
    wake_at: float | None = None
