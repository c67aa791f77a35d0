"""Devices that compare the new model with their active one before they activate it. Pure rules.

A device reports how many of its own inputs it has compared, and how many answers differed. It is let go when all
devices of its wave that are comparing have ended. A device whose own answers differ too often has failed; the evidence
of all devices together is a gate (`gate_watch`).
"""

from __future__ import annotations

import msgspec

from edgekit.bounds import MAX_INTEGER
from edgekit.mqtt.messages import SHADOW_COMPLETE, SHADOW_DIGITS, SHADOW_TIME, Running, Shadow
from edgekit.rollout.gate_evidence import LIMIT, own_share_evidence
from edgekit.rollout.gates import AGREEMENT, Gate
from edgekit.rollout.judging import has_compared
from edgekit.rollout.plan import RolloutPlan
from edgekit.rollout.values import DeviceProgress, DeviceState, Rollout

OWN_LIMIT = 5 * LIMIT
_REASONS = {
    "no-model": "it has no model to compare with",
    "memory": "both models do not fit into its memory",
    "stateful": "the model keeps a state",
    "inputs": "the new model has other inputs",
    "load": "the new model could not be loaded beside the active one",
}


def agreement_gate(plan: RolloutPlan) -> Gate | None:
    """The plan's agreement gate; None without one."""
    return next((gate for gate in plan.gates if gate.metric == AGREEMENT), None)


def compared(progress: DeviceProgress, running: Running | None, inputs: int) -> DeviceProgress:
    """The device's progress with its last report of a comparison of this rollout's bundle.

    Args:
        progress: The device.
        running: Its last report about the model; None before the first.
        inputs: Number of inputs that each device compares: no device counts for more of them, whatever it reports.
    """
    said = running.shadow if running is not None else None
    if said is None or not progress.shadowing or said.candidate != progress.digest[:SHADOW_DIGITS]:
        return progress
    if said.run == progress.old_shadow:
        return progress
    total = min(max(0, said.compared), inputs)  # a device may report anything
    differed = min(max(0, said.differed), total)
    counts = Shadow(
        said.candidate,
        compared=total,
        differed=differed,
        failed=min(max(0, said.failed), differed),
        dropped=min(max(0, said.dropped), MAX_INTEGER),
        ended=said.ended[:16],
        run=said.run,
    )
    return progress if counts == progress.shadow else msgspec.structs.replace(progress, shadow=counts)


def own_failure(progress: DeviceProgress, rollout: Rollout, devices: int) -> str:
    """Why a device alone shows that its answers differ too often, for people; empty if it does not.

    The limit rises with the number of devices, so that any of them fails as rarely as a fifth of a gate.

    Args:
        progress: The device.
        rollout: Its rollout; an accepted gate finds nothing.
        devices: Number of devices in the rollout.
    """
    gate, counts = agreement_gate(rollout.plan), progress.shadow
    if gate is None or counts is None or not progress.shadowing or gate.text in rollout.accepted_gates:
        return ""
    evidence = own_share_evidence(counts.differed, counts.compared - counts.differed, gate.margin)
    if evidence < OWN_LIMIT * max(1, devices):
        return ""
    return f"its answers differ from the active model's on {counts.differed} of {counts.compared} inputs"


def let_go(rollout: Rollout) -> list[str]:
    """Devices that may activate the bundle now: all of their wave that are comparing have ended."""
    busy = {one.wave for one in _comparing(rollout) if not has_compared(one)}
    return [
        name
        for name, one in sorted(rollout.devices.items())
        if one.shadowing and one.state is DeviceState.ASSIGNED and has_compared(one) and one.wave not in busy
    ]


def nothing_compared(rollout: Rollout) -> str:
    """Why an agreement gate cannot let devices go: none has compared an input. For people; empty if one has."""
    gate = agreement_gate(rollout.plan)
    if gate is None or gate.text in rollout.accepted_gates:
        return ""
    counts = [one.shadow for one in rollout.devices.values() if one.shadow is not None]
    if not let_go(rollout) or any(one.compared for one in counts):
        return ""
    words: dict[str, int] = {}
    for one in counts:
        text = _REASONS.get(one.ended, "no request came" if one.ended == SHADOW_TIME else one.ended)
        words[text] = words.get(text, 0) + 1
    why = ", ".join(f"{text} ({count})" for text, count in words.items())
    return f"gate '{gate.text}': no device has compared an input: {why}"


def shadow_text(progress: DeviceProgress, plan: RolloutPlan) -> str:
    """The comparison of a device for people, for example ``compared 40 of 100 inputs, 2 differ``; empty without one."""
    counts = progress.shadow
    if counts is None:
        return f"compares {plan.shadow} inputs" if progress.shadowing else ""
    if counts.ended in _REASONS:
        return f"cannot compare: {_REASONS[counts.ended]}"
    parts = [f"compared {counts.compared} of {plan.shadow} inputs, {counts.differed} differ"]
    parts += [f"{counts.failed} without an answer"] if counts.failed else []
    parts += [f"{counts.dropped} left out"] if counts.dropped else []
    parts += [f"ended: {'its time is over' if counts.ended == SHADOW_TIME else counts.ended}"] * (
        counts.ended not in ("", SHADOW_COMPLETE)
    )
    return ", ".join(parts)


def _comparing(rollout: Rollout) -> list[DeviceProgress]:
    return [one for one in rollout.devices.values() if one.shadowing and one.state is DeviceState.ASSIGNED]
