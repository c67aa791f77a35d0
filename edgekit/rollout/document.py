"""A rollout as a document: what ``--json`` prints and the API of the controller answers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgekit.mqtt.messages import Shadow
from edgekit.rollout.gate_watch import GateView, gate_views
from edgekit.rollout.values import Decision, DeviceProgress, Rollout


class VerdictDocument(msgspec.Struct, frozen=True):
    """The state of a device that counted, where it changed afterwards; `at` is wall clock seconds."""

    state: str
    at: float
    reason: str


class ShadowDocument(msgspec.Struct, frozen=True):
    """The comparison of the new model with the device's active one; counts of inputs as `messages.Shadow`."""

    compared: int
    differed: int
    failed: int
    dropped: int
    ended: str


class DeviceDocument(msgspec.Struct, frozen=True):
    """One device of a rollout; fields as `DeviceProgress`. `shadow` is there once it has reported a comparison."""

    state: str
    reason: str
    digest: str
    told_at: float
    at: float
    waiting_since: float
    late: bool
    verdict: VerdictDocument | None
    shadowing: bool = False
    shadow: ShadowDocument | msgspec.UnsetType = msgspec.UNSET


class RolloutDocument(msgspec.Struct, frozen=True):
    """A rollout.

    Attributes:
        id, model, version, reason, stopped_itself, decisions: As `Rollout`.
        state: Its state.
        wave: Number of the current wave, from 1.
        waves: Sizes of the waves, as people write them.
        counts: Number of devices by state.
        late: Number of devices that succeeded after the rollout had counted them otherwise.
        unreadable: What of its stored state cannot be read; empty if all can.
        awaits_approval: True while the next wave waits for an approval.
        gates: The evidence of each gate, where the devices were asked for.
        devices: Its devices by name, where they were asked for: all of them, or one page.
        next: Of a page, the last name where more devices follow; else empty.
    """

    id: int
    model: str
    version: str
    state: str
    reason: str
    stopped_itself: bool
    wave: int
    waves: list[str]
    counts: dict[str, int]
    late: int
    decisions: list[Decision]
    unreadable: str
    awaits_approval: bool = False
    gates: list[GateView] | msgspec.UnsetType = msgspec.UNSET
    devices: dict[str, DeviceDocument] | msgspec.UnsetType = msgspec.UNSET
    next: str | msgspec.UnsetType = msgspec.UNSET


def document(
    rollout: Rollout, *, devices: bool = False, counts: dict[str, int] | None = None, late: int | None = None
) -> RolloutDocument:
    """The document of a rollout.

    Args:
        rollout: The rollout.
        devices: Describe each device too.
        counts: Number of devices by state, where `rollout` was read without its devices.
        late: Number of late devices, likewise.
    """
    described = {name: _device(progress) for name, progress in rollout.devices.items()} if devices else msgspec.UNSET
    return RolloutDocument(
        id=rollout.id,
        model=rollout.model,
        version=rollout.version,
        state=rollout.state.value,
        reason=rollout.reason,
        stopped_itself=rollout.stopped_itself,
        wave=rollout.wave + 1,
        waves=[wave.text for wave in rollout.plan.waves],
        counts=rollout.counts() if counts is None else {**dict.fromkeys(rollout.counts(), 0), **counts},
        late=sum(progress.late for progress in rollout.devices.values()) if late is None else late,
        decisions=list(rollout.decisions),
        unreadable=rollout.fault,
        awaits_approval=rollout.awaits_approval,
        gates=gate_views(rollout) if devices else msgspec.UNSET,
        devices=described,
    )


def page_document(
    counted: RolloutDocument, members: Sequence[tuple[str, DeviceProgress]], limit: int, gates: list[GateView]
) -> RolloutDocument:
    """The document of a rollout with one page of its devices.

    Args:
        counted: The document without devices.
        members: The devices of the page by name, and one more where more follow.
        limit: Number of devices of a page.
        gates: The evidence of each gate.
    """
    page = {name: _device(progress) for name, progress in members[:limit]}
    following = members[limit - 1][0] if len(members) > limit else ""
    return msgspec.structs.replace(counted, devices=page, next=following, gates=gates)


def _device(progress: DeviceProgress) -> DeviceDocument:
    verdict = None
    if progress.verdict is not None:
        verdict = VerdictDocument(progress.verdict.value, progress.verdict_at, progress.verdict_reason)
    return DeviceDocument(
        state=progress.state.value,
        reason=progress.reason,
        digest=progress.digest,
        told_at=progress.assigned_at,
        at=progress.at,
        waiting_since=progress.waiting_since,
        late=progress.late,
        verdict=verdict,
        shadowing=progress.shadowing,
        shadow=_shadow(progress.shadow),
    )


def _shadow(said: Shadow | None) -> ShadowDocument | msgspec.UnsetType:
    if said is None:
        return msgspec.UNSET
    return ShadowDocument(said.compared, said.differed, said.failed, said.dropped, said.ended)
