"""Plans a rollout before it starts: bundles, skipped devices, and the devices that would refuse. For CLI and API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from edgekit.bundle.order import version_order
from edgekit.bundle.readers import TooOld, too_old
from edgekit.errors import NotFoundError, RefusedError
from edgekit.registry import RegistryReader, Release
from edgekit.rollout.agent_needs import SHADOW, SINCE, Ignoring, can_shadow, ignoring, plan_needs
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.plan import RETURN, RolloutPlan, Wave
from edgekit.rollout.preflight import refusal, unfitting
from edgekit.rollout.unproven import Unproven, unproven
from edgekit.trust.assignment import Entry

if TYPE_CHECKING:
    from edgekit.state import DeviceKind, FleetState, SelectedDevices


T = TypeVar("T")


class Planned(msgspec.Struct, frozen=True):
    """The effects that a rollout would have.

    Attributes:
        devices: Number of devices with a bundle for their target.
        skipped: Number of devices of each target without a bundle.
        digests: Digest of the bundle by target.
        too_old: By target, the devices whose edgekit cannot read its bundle.
        refusals: Why a device would refuse the bundle as a downgrade, by its name.
        unfitting: Every reason why a device does not fit its bundle, by its name, from the facts that it reports.
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
    unfitting: dict[str, tuple[str, ...]] = {}

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
    selected: SelectedDevices,
    name: str,
    version: str,
    *,
    plan: RolloutPlan,
    downgrade: bool = False,
) -> tuple[Planned, dict[str, Entry]]:
    """Plan a rollout. Devices that report the same are judged once.

    Args:
        reader: The registry, refreshed.
        selected: The devices that the rollout selects.
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
        _check_return(reader, selected.assigned(name), name, version)
    kinds = selected.kinds(name)
    releases, missing = _bundles(reader, kinds, name, version)
    members = {str(index): kind for index, kind in enumerate(kinds) if kind.target in releases}
    devices = sum(kind.count for kind in members.values())
    plan.check_size(devices)
    entries = {
        target: msgspec.structs.replace(release.entry, downgrade=downgrade) for target, release in releases.items()
    }
    judged = _Judged(
        too_old=_too_old(releases, members),
        refusals=_refusals(releases, entries, members),
        ignoring=ignoring(plan_needs(plan), {key: one.edgekit for key, one in members.items()}),
        unable=_unable(plan, members, devices),
        unproven=tuple(_unproven(releases, members)),
        unfitting=_unfitting(releases, members),
    )
    digests = {target: entry.sha256 for target, entry in entries.items()}
    planned = Planned(devices, missing, digests, {}, {}, plan)
    return _named(planned, judged, members, selected), entries


class _Judged(NamedTuple):
    """As in `Planned`, with keys of kinds of devices for their names."""

    too_old: dict[str, TooOld]
    refusals: dict[str, str]
    ignoring: Ignoring | None
    unable: tuple[str, ...]
    unproven: tuple[Unproven, ...]
    unfitting: dict[str, tuple[str, ...]]

    @property
    def keys(self) -> set[str]:
        """The kinds that something is wrong with."""
        old = (key for one in self.too_old.values() for key in one.devices)
        ignoring = self.ignoring.devices if self.ignoring else ()
        unproven = (key for one in self.unproven for key in one.devices)
        return {*old, *self.refusals, *ignoring, *self.unable, *unproven, *self.unfitting}


def _named(planned: Planned, judged: _Judged, members: Mapping[str, DeviceKind], selected: SelectedDevices) -> Planned:
    """The plan with the names of the devices of the kinds that something is wrong with."""
    found = selected.names([members[key] for key in judged.keys])

    def named(values: Mapping[str, T]) -> dict[str, T]:
        each = ((name, value) for key, value in values.items() for name in names((key,)))
        return dict(sorted(each))

    def names(keys: Iterable[str]) -> tuple[str, ...]:
        kinds = (members[key] for key in keys)
        return tuple(sorted(name for kind in kinds for name in found.get((kind.target, kind.key), ())))

    def with_names(one: TooOld | Ignoring) -> Any:
        return msgspec.structs.replace(one, devices=named(one.devices))

    return msgspec.structs.replace(
        planned,
        too_old={target: with_names(one) for target, one in judged.too_old.items()},
        refusals=named(judged.refusals),
        ignoring=with_names(judged.ignoring) if judged.ignoring else None,
        unable=names(judged.unable),
        unproven=tuple(msgspec.structs.replace(one, devices=names(one.devices)) for one in judged.unproven),
        unfitting=named(judged.unfitting),
    )


def with_chosen(state: FleetState, plan: RolloutPlan, selected: SelectedDevices, now: float) -> RolloutPlan:
    """The plan with the sizes of the waves that are filters, and a first wave of its canaries, where it names some.

    Args:
        state: The fleet.
        plan: The plan as the operator wrote it.
        selected: The devices that the rollout selects.
        now: Wall clock seconds.

    Raises:
        NotFoundError: no device of the rollout is a canary, or a wave adds none.
        SettingsError: a filter cannot be read, or the waves after these do not rise.
    """
    if plan.canaries is None and not any(wave.cohort for wave in plan.waves):
        return plan
    waves: list[Wave] = []
    reached: set[str] = set()
    names = {name for kind in selected.names().values() for name in kind}
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
    return {name for kind in state.select(cohort, now).names().values() for name in kind}


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
    reader: RegistryReader, kinds: Sequence[DeviceKind], name: str, version: str
) -> tuple[dict[str, Release], dict[str, int]]:
    """The bundle for each target, and the number of devices for each target without a bundle."""
    releases: dict[str, Release] = {}
    missing: dict[str, int] = {}
    last_error: NotFoundError | None = None
    for target in sorted({kind.target for kind in kinds}):
        try:
            releases[target] = reader.resolve(name, target, version)
        except NotFoundError as error:
            last_error = error
            missing[target] = sum(kind.count for kind in kinds if kind.target == target)
    if not releases and last_error is not None:
        raise last_error
    return releases, missing


def _too_old(releases: Mapping[str, Release], members: Mapping[str, DeviceKind]) -> dict[str, TooOld]:
    """By target, the devices of the rollout whose edgekit cannot read its bundle."""
    found = {}
    for target, release in releases.items():
        versions = {key: kind.edgekit for key, kind in members.items() if kind.target == target}
        if old := too_old(release.manifest, versions):
            found[target] = old
    return found


def _unproven(releases: Mapping[str, Release], members: Mapping[str, DeviceKind]) -> Iterator[Unproven]:
    """The devices of the rollout whose runtime version is not proven for their bundle."""
    for target, release in releases.items():
        facts = {key: kind.facts for key, kind in members.items() if kind.target == target}
        yield from unproven(target, release.manifest, release.evidence, facts)


def _refusals(
    releases: Mapping[str, Release], entries: Mapping[str, Entry], members: Mapping[str, DeviceKind]
) -> dict[str, str]:
    """Why devices of the rollout would refuse their bundle, from what they have reported."""
    found = {}
    for key, kind in members.items():
        reason = refusal(kind.running, entries[kind.target], allowed=releases[kind.target].downgrade)
        if reason:
            found[key] = reason
    return found


def _unfitting(releases: Mapping[str, Release], members: Mapping[str, DeviceKind]) -> dict[str, tuple[str, ...]]:
    """Why devices of the rollout do not fit their bundle, from the facts that they have reported."""
    found = {key: unfitting(releases[kind.target].manifest, kind.facts) for key, kind in members.items()}
    return {key: reasons for key, reasons in found.items() if reasons}


def _unable(plan: RolloutPlan, members: Mapping[str, DeviceKind], devices: int) -> tuple[str, ...]:
    """Devices that cannot make the comparison that the plan asks for. Raises RefusedError if none can."""
    if not plan.shadow:
        return ()
    unable = tuple(key for key, kind in members.items() if not can_shadow(kind.edgekit))
    if len(unable) == len(members):
        raise RefusedError(
            f"none of {devices} devices can compare the new model with its active one: that needs edgekit "
            f"{SINCE[SHADOW]}, and a report that says so",
            advice="Update edgekit there, or leave out --shadow.",
        )
    return unable


def _check_return(reader: RegistryReader, before: set[tuple[str, str]], name: str, version: str) -> None:
    """Check that each device would take back the version that is assigned to it now: `before`, with its target."""
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
