"""Applies gates to the devices of a rollout: what each has reported, and whether a gate fails. Pure rules."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from edgekit.mqtt.messages import Running, Shadow
from edgekit.rollout.gate_evidence import LIMIT, weigh, weigh_share
from edgekit.rollout.gate_observed import Observed
from edgekit.rollout.gate_pairs import Pairs, paired
from edgekit.rollout.gates import AGREEMENT, Gate
from edgekit.rollout.values import DeviceProgress, Rollout


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
    previous = before.previous or _previous(running, progress.digest)
    reported = running.behaviour
    after = msgspec.structs.replace(
        before,
        previous=previous,
        baseline=before.baseline.after(reported[previous]) if previous in reported else before.baseline,
        candidate=before.candidate.after(reported[progress.digest])
        if progress.digest in reported
        else before.candidate,
    )
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
    return [_view(gate, devices, limit, accepted=gate.text in rollout.accepted_gates) for gate in rollout.plan.gates]


def failed_gate(rollout: Rollout) -> str:
    """Why a gate stops the rollout, for people; empty if none does."""
    views = {view.gate: view for view in gate_views(rollout) if view.failed}
    reasons = []
    for gate in rollout.plan.gates:
        view = views.get(gate.text)
        if view is not None and not view.accepted:
            word = "fell" if gate.falls else "rose"
            moved = f"{gate.shown} {word} from {view.baseline:.1%} to {view.candidate:.1%} ({view.pairs} pairs"
            if gate.metric == AGREEMENT:
                moved = f"{view.candidate:.1%} of the {gate.shown} ({view.pairs} inputs"
            reasons.append(
                f"gate '{gate.text}': {moved} of {view.devices} devices, "
                f"evidence {view.evidence:.0f} of {view.limit:.0f})"
            )
    return "; ".join(reasons)


def _view(gate: Gate, devices: Sequence[DeviceProgress], limit: float, *, accepted: bool) -> GateView:
    pairs = [_pairs(gate, one) for one in devices if one.assigned_at]
    counts = np.array([(one.worse, one.equal, one.better) for one in pairs], np.int64).reshape(-1, 3).T
    if gate.metric == AGREEMENT:
        evidence = weigh_share(counts[0], counts[1], gate.margin)
    else:
        evidence = weigh(counts[0], counts[1], counts[2], gate.margin)
    total = sum(one.count for one in pairs)
    good = [sum(one.baseline_good for one in pairs), sum(one.candidate_good for one in pairs)]
    shares = [(count if gate.falls else total - count) / total if total else 0.0 for count in good]
    value = round(float(evidence.value), 6)
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
    )


def _pairs(gate: Gate, progress: DeviceProgress) -> Pairs:
    """The pairs of a device. In a comparison of answers, the previous model's count as good."""
    if gate.metric != AGREEMENT:
        return progress.observed.pairs.get(gate.text, Pairs()) if progress.observed else Pairs()
    shadow = progress.shadow or Shadow("")
    agreed = shadow.compared - shadow.differed
    return Pairs(shadow.differed, agreed, 0, shadow.compared, agreed)


def _previous(running: Running, candidate: str) -> str:
    """The digest of the model before: what runs now, or after the switch what ran last."""
    if running.digest and running.digest != candidate:
        return running.digest
    others = [digest for digest in running.behaviour if digest != candidate]
    return others[-1] if others else ""
