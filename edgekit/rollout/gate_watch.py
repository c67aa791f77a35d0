"""Applies gates to the devices of a rollout: what each has reported, and whether a gate fails. Pure rules."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from edgekit.mqtt.messages import Running, Shadow
from edgekit.rollout.gate_evidence import LIMIT, STEPS, Evidence, weigh, weigh_beside, weigh_share
from edgekit.rollout.gate_observed import Beside, Observed
from edgekit.rollout.gate_pairs import Pairs, paired
from edgekit.rollout.gates import AGREEMENT, Gate
from edgekit.rollout.plan import COHORT
from edgekit.rollout.values import DeviceProgress, Rollout


class ControlView(msgspec.Struct, frozen=True):
    """The control cohort of a gate: devices that run the old version in the same hours.

    Attributes:
        pairs, devices: Number of its pairs, and of the devices that they come from.
        baseline, candidate: Shares in its pairs, before the rollout and in the same hours as the new model's.
        alone: Number of the gate's pairs that were made without it, after it had become too small.
    """

    pairs: int
    devices: int
    baseline: float
    candidate: float
    alone: int


class GateView(msgspec.Struct, frozen=True):
    """The present evidence of a gate.

    Attributes:
        gate: The gate, as people write it.
        evidence, limit: The new model is worse when the evidence reaches the limit.
        pairs, devices: Number of pairs, and of the devices that they come from. For ``agreement``: inputs compared.
        baseline, candidate: Shares in the pairs, of what `Gate.shown` says, of the previous model and of the new one.
        dropped: Number of devices that do not count, because they are plainly worse than the others.
        failed: True if the evidence reaches the limit.
        accepted: True if an operator resumed the rollout after the gate had failed; it stops nothing any more.
        control: The control cohort; None where the plan asks for none.
    """

    gate: str
    evidence: float
    limit: float
    pairs: int
    devices: int
    baseline: float
    candidate: float
    dropped: int
    failed: bool
    accepted: bool
    control: ControlView | None = None


def observe(progress: DeviceProgress, running: Running | None, gates: tuple[Gate, ...], seed: str) -> DeviceProgress:
    """The device's progress with what it reported about both models.

    Args:
        progress: Its progress.
        running: Its last report about the model; None before the first.
        gates: The gates of the rollout.
        seed: Names the rollout and the device.
    """
    if running is None or not gates or not progress.digest or not running.behaviour:
        return progress
    before = progress.observed or Observed()
    after = before.after(running, progress.digest)
    pairs = {
        gate.text: paired(
            before.pairs.get(gate.text, Pairs()),
            gate.good_of(after.baseline.total),
            gate.good_of(after.candidate.total),
            f"{seed}/{gate.text}",
        )
        for gate in gates
    }
    after = msgspec.structs.replace(after, pairs={text: one for text, one in pairs.items() if one.count})
    return progress if after == before else msgspec.structs.replace(progress, observed=after)


def gate_views(rollout: Rollout) -> list[GateView]:
    """The present evidence of each gate of a rollout."""
    devices = list(rollout.devices.values())
    limit = LIMIT * len(rollout.plan.gates)  # several gates share the false stops that one may have
    beside = rollout.plan.control == COHORT
    accepted = rollout.accepted_gates
    return [_view(gate, devices, limit, accepted=gate.text in accepted, beside=beside) for gate in rollout.plan.gates]


def failed_gate(rollout: Rollout) -> str:
    """Why a gate stops the rollout, for people; empty if none does."""
    views = {view.gate: view for view in gate_views(rollout) if view.failed}
    reasons = []
    for gate in rollout.plan.gates:
        view = views.get(gate.text)
        if view is not None and not view.accepted:
            word = "fell" if gate.falls else "rose"
            moved, unit = f"{gate.shown} {word} from {view.baseline:.1%} to {view.candidate:.1%}", "pairs"
            if gate.metric == AGREEMENT:
                moved, unit = f"{view.candidate:.1%} of the {gate.shown}", "inputs"
            moved += control_text(view.control) if view.control is not None else ""
            reasons.append(
                f"gate '{gate.text}': {moved} ({view.pairs} {unit} of {view.devices} devices, "
                f"evidence {view.evidence:.0f} of {view.limit:.0f})"
            )
    return "; ".join(reasons)


def control_text(control: ControlView) -> str:
    """The control cohort for people, after what a gate found in the devices with the new model."""
    alone = f", {control.alone} pairs without a control cohort" if control.alone else ""
    if not control.pairs:
        return alone
    moved = f"{control.baseline:.1%} before and {control.candidate:.1%} now in the control cohort"
    return f", {moved} of {control.devices} devices{alone}"


def _view(gate: Gate, devices: Sequence[DeviceProgress], limit: float, *, accepted: bool, beside: bool) -> GateView:
    beside = beside and gate.metric != AGREEMENT
    assigned = [one for one in devices if one.assigned_at]
    alone = [_pairs(gate, one) for one in assigned]
    pairs = [one.plus(_beside(gate, progress).own) for one, progress in zip(alone, assigned, strict=True)]
    evidence = _weighed(gate, assigned, alone, beside=beside)
    total, shares = _shares(gate, pairs)
    value = round(float(evidence.value), 6)
    control = None
    if beside:
        others = [_beside(gate, one).control for one in devices]
        count, changed = _shares(gate, others)
        control = ControlView(count, sum(one.count > 0 for one in others), *changed, sum(one.count for one in alone))
    return GateView(
        gate=gate.text,
        evidence=value,
        limit=limit,
        pairs=total,
        devices=sum(one.count > 0 for one in pairs),
        baseline=shares[0],
        candidate=shares[1],
        dropped=int(evidence.dropped),
        failed=value >= limit,
        accepted=accepted,
        control=control,
    )


def _weighed(gate: Gate, assigned: Sequence[DeviceProgress], pairs: Sequence[Pairs], *, beside: bool) -> Evidence:
    """The evidence of devices that have the assignment; `pairs` are those without a control cohort beside them."""
    counts = np.array([(one.worse, one.equal, one.better) for one in pairs], np.int64).reshape(-1, 3).T
    if gate.metric == AGREEMENT:
        return weigh_share(counts[0], counts[1], gate.margin)
    if not beside:
        return weigh(counts[0], counts[1], counts[2], gate.margin)
    steps = [_beside(gate, one).steps or (0,) * STEPS for one in assigned]
    return weigh_beside(np.array(steps, np.int64).reshape(-1, STEPS).T, counts[0], counts[1], counts[2], gate.margin)


def _shares(gate: Gate, pairs: Sequence[Pairs]) -> tuple[int, tuple[float, float]]:
    """Number of all pairs, and the share of each model in them that is shown."""
    total = sum(one.count for one in pairs)
    before, after = sum(one.baseline_good for one in pairs), sum(one.candidate_good for one in pairs)
    if not total:
        return 0, (0.0, 0.0)
    return total, (_share(gate, before, total), _share(gate, after, total))


def _share(gate: Gate, good: int, total: int) -> float:
    return (good if gate.falls else total - good) / total


def _beside(gate: Gate, progress: DeviceProgress) -> Beside:
    return progress.observed.beside.get(gate.text, Beside()) if progress.observed else Beside()


def _pairs(gate: Gate, progress: DeviceProgress) -> Pairs:
    """The pairs of a device. In a comparison of answers, the previous model's count as good."""
    if gate.metric != AGREEMENT:
        return progress.observed.pairs.get(gate.text, Pairs()) if progress.observed else Pairs()
    shadow = progress.shadow or Shadow("")
    agreed = shadow.compared - shadow.differed
    return Pairs(shadow.differed, agreed, 0, shadow.compared, agreed)
