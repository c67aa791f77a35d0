"""Plans a rollout before it starts: bundles, skipped devices, and the devices that would refuse. For CLI and API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from edgekit.bundle.order import version_order
from edgekit.bundle.readers import TooOld, too_old
from edgekit.errors import NotFoundError, RefusedError
from edgekit.registry import RegistryReader, Release
from edgekit.rollout.agent_needs import SHADOW, SINCE, Ignoring, can_shadow, ignoring, plan_needs
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.plan import RETURN, RolloutPlan, Wave
from edgekit.rollout.preflight import refusal
from edgekit.rollout.unproven import Unproven, unproven
from edgekit.trust.assignment import Entry

if TYPE_CHECKING:
    from edgekit.state import DeviceView, FleetState


class Planned(msgspec.Struct, frozen=True):
    """The effects that a rollout would have.

    Attributes:
        devices: Number of devices with a bundle for their target.
        skipped: Number of devices of each target without a bundle.
        digests: Digest of the bundle by target.
        too_old: By target, the devices whose edgekit cannot read its bundle.
        refusals: Why a device would refuse the bundle, by its name.
        plan: Waves and thresholds.
        ignoring: The devices whose agent is too old for conditions and gates of the plan; None if there are none.
        unable: Devices that cannot compare the new model with their active one, where the plan asks for it: their agent
            is too old or has not reported yet. They get it last.
        unproven: The devices with a runtime version that their bundle has no good evidence for.
    """

    devices: int
    skipped: dict[str, int]
    digests: dict[str, str]
    too_old: dict[str, TooOld]
    refusals: dict[str, str]
    plan: RolloutPlan
    ignoring: Ignoring | None = None
    unable: tuple[str, ...] = ()
    unproven: tuple[Unproven, ...] = ()

    def check_refusals(self, name: str, version: str) -> None:
        """Raise RefusedError when no device of the rollout would take the bundle."""
        if self.refusals and len(self.refusals) == self.devices:
            device, reason = min(self.refusals.items())
            raise RefusedError(
                f"every device would refuse {name} {version}, for example {device}: {reason}",
                advice=f"To go back on purpose: edgekit registry allow-downgrade {name} {version}, and then "
                f"edgekit rollout start {name} {version} --downgrade",
            )


def plan_rollout(
    reader: RegistryReader,
    members: Sequence[DeviceView],
    name: str,
    version: str,
    *,
    plan: RolloutPlan,
    downgrade: bool = False,
) -> tuple[Planned, dict[str, Entry]]:
    """Plan a rollout.

    Args:
        reader: The registry, refreshed.
        members: The devices that the rollout selects.
        name, version: What to roll out.
        plan: Waves and thresholds.
        downgrade: The operator asks for a downgrade, where the publisher allows it.

    Returns:
        The plan, and the assignment entries by target.

    Raises:
        NotFoundError: no device has a bundle for its target.
        SettingsError: the waves do not rise for a fleet of this size.
        RefusedError: the plan returns devices on failure, and they would refuse what they had before; or it asks for
            comparisons, which no device can make.
    """
    if plan.on_failure == RETURN:
        _check_return(reader, members, name, version)
    releases, missing = _bundles(reader, members, name, version)
    plan.check_size(sum(device.target in releases for device in members))
    entries = {
        target: msgspec.structs.replace(release.entry, downgrade=downgrade) for target, release in releases.items()
    }
    unable = _unable(plan, [one for one in members if one.target in entries])
    planned = Planned(
        devices=sum(device.target in entries for device in members),
        skipped=missing,
        digests={target: entry.sha256 for target, entry in entries.items()},
        too_old=_too_old(releases, members),
        refusals=_refusals(name, releases, entries, members),
        plan=plan,
        ignoring=ignoring(plan_needs(plan), {one.device: one.edgekit for one in members if one.target in entries}),
        unable=unable,
        unproven=tuple(_unproven(releases, members)),
    )
    return planned, entries


def with_chosen(state: FleetState, plan: RolloutPlan, members: Sequence[DeviceView], now: float) -> RolloutPlan:
    """The plan with the sizes of the waves that are filters, and a first wave of its canaries, where it names some.

    Args:
        state: The fleet.
        plan: The plan as the operator wrote it.
        members: The devices that the rollout selects.
        now: Wall clock seconds.

    Raises:
        NotFoundError: no device of the rollout is a canary, or a wave adds none.
        SettingsError: a filter cannot be read, or the waves after these do not rise.
    """
    waves: list[Wave] = []
    reached: set[str] = set()
    names = {device.device for device in members}
    if plan.canaries is not None:
        reached = _matching(state, plan.canaries, now) & names
        if not reached:
            raise _no_device(f"matches the canaries, {plan.canaries.text}")
        waves.append(Wave(count=len(reached)))
    for wave in plan.waves:
        if wave.cohort is not None:
            cohort = state.groups.resolved(wave.cohort)
            added = (_matching(state, cohort, now) & names) - reached
            if not added:
                raise _no_device(f"is in the wave {wave.text} and in no wave before it")
            reached |= added
            wave = Wave(count=len(reached), cohort=cohort)
        waves.append(wave)
    return msgspec.structs.replace(plan, waves=tuple(waves))


def _matching(state: FleetState, cohort: Cohort, now: float) -> set[str]:
    return {one.device for one in state.devices.views(now, state.offline_after_seconds, cohort=cohort)}


def _no_device(which: str) -> NotFoundError:
    return NotFoundError(f"no device of the rollout {which}", advice="See: edgekit device list --filter FILTER")


def standing_entries(reader: RegistryReader, model: str, version: str, channel: str) -> dict[str, Entry]:
    """The bundles of a standing assignment by target, as the registry has them now.

    Args:
        reader: The registry, refreshed.
        model: Name of the model.
        version, channel: One of them: a fixed version, or the newest one of a channel.

    Raises:
        NotFoundError: there is none.
    """
    entries = {}
    last: NotFoundError | None = None
    for target in sorted({row.target for row in reader.list(model)}):
        try:
            entries[target] = reader.resolve(model, target, version or None, channel=channel).entry
        except NotFoundError as error:
            last = error
    if not entries:
        raise last or NotFoundError(f"the registry has no model {model!r}", advice="See: edgekit registry list")
    return entries


def _bundles(
    reader: RegistryReader, members: Sequence[DeviceView], name: str, version: str
) -> tuple[dict[str, Release], dict[str, int]]:
    """The bundle for each target, and the number of devices for each target without a bundle."""
    releases: dict[str, Release] = {}
    missing: dict[str, int] = {}
    last_error: NotFoundError | None = None
    for target in sorted({device.target for device in members}):
        try:
            releases[target] = reader.resolve(name, target, version)
        except NotFoundError as error:
            last_error = error
            missing[target] = sum(device.target == target for device in members)
    if not releases and last_error is not None:
        raise last_error
    return releases, missing


def _too_old(releases: Mapping[str, Release], members: Sequence[DeviceView]) -> dict[str, TooOld]:
    """By target, the devices of the rollout whose edgekit cannot read its bundle."""
    found = {}
    for target, release in releases.items():
        names = {device.device: device.edgekit for device in members if device.target == target}
        if old := too_old(release.manifest, names):
            found[target] = old
    return found


def _unproven(releases: Mapping[str, Release], members: Sequence[DeviceView]) -> Iterator[Unproven]:
    """The devices of the rollout whose runtime version is not proven for their bundle."""
    for target, release in releases.items():
        facts = {device.device: device.facts for device in members if device.target == target}
        yield from unproven(target, release.manifest, release.evidence, facts)


def _refusals(
    name: str, releases: Mapping[str, Release], entries: Mapping[str, Entry], members: Sequence[DeviceView]
) -> dict[str, str]:
    """Why a device of the rollout would refuse its bundle, by the device's name, from what it has reported."""
    found = {}
    for device in members:
        if entry := entries.get(device.target):
            reason = refusal(device.models.get(name), entry, allowed=releases[device.target].downgrade)
            if reason:
                found[device.device] = reason
    return found


def _unable(plan: RolloutPlan, members: Sequence[DeviceView]) -> tuple[str, ...]:
    """Devices that cannot make the comparison that the plan asks for. Raises RefusedError if none can."""
    if not plan.shadow:
        return ()
    unable = tuple(sorted(one.device for one in members if not can_shadow(one.edgekit)))
    if len(unable) == len(members):
        raise RefusedError(
            f"none of {len(members)} devices can compare the new model with its active one: that needs edgekit "
            f"{SINCE[SHADOW]}, and a report that says so",
            advice="Update edgekit there, or leave out --shadow.",
        )
    return unable


def _check_return(reader: RegistryReader, members: Sequence[DeviceView], name: str, version: str) -> None:
    """Check that each device would take back the version that is assigned to it now."""
    before = {(device.assigned[name], device.target) for device in members if device.assigned.get(name)}
    refused = set()
    for old, target in sorted(before):
        try:
            allowed = reader.resolve(name, target, old).downgrade
        except NotFoundError:
            allowed = False
        if not allowed and version_order(old) < version_order(version):
            refused.add(old)
    if refused:
        commands = "; ".join(f"edgekit registry allow-downgrade {name} {old}" for old in sorted(refused))
        raise RefusedError(
            f"devices could not return to {name} {', '.join(sorted(refused))}: its publisher allows no downgrade to it",
            advice=f"Run: {commands}. Or let failures pause the rollout (on_failure).",
        )
