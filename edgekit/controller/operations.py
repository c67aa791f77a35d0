"""Reads and changes by operators, for API and pages; the command line calls the same functions of the fleet state."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.bounds import MAX_INTEGER, MAX_SECONDS
from edgekit.bundle.manifest import NAME_PATTERN, VERSION
from edgekit.controller.administration import NewCode, Removed, new_code, remove_device
from edgekit.controller.commanding import CommandRequest, Plan, plan_commands, send
from edgekit.controller.planning import Planned, plan_rollout, standing_entries, with_chosen
from edgekit.errors import SettingsError
from edgekit.filters import parse_filter
from edgekit.filters.parsing import MAX_CHARACTERS
from edgekit.health.summary import Summary, summarise
from edgekit.protocols import Clock
from edgekit.registry import CatalogueEntry, RegistryReader
from edgekit.rollout.allowance import MAX_PER_HOUR, MAX_RAMP
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.document import RolloutDocument, document
from edgekit.rollout.gates import MAX_GATES, parse_gate
from edgekit.rollout.plan import DEFAULT_WAVES, MAX_SHADOW, RolloutPlan, parse_waves
from edgekit.rollout.values import RolloutEvent
from edgekit.state import Alarm, DeviceView, FleetPause, FleetState, SavedGroup, StoredCommand
from edgekit.state.fleet.detail import DeviceDetail, describe_device
from edgekit.state.overview import Overview
from edgekit.state.rollout.uninstall import Uninstall
from edgekit.trust.assignment import Entry

DEFAULTS = RolloutPlan()

Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(pattern=f"^{NAME_PATTERN.pattern}$")]
Version = Annotated[str, Meta(pattern=f"^{VERSION.pattern}$")]
Text = Annotated[str, Meta(max_length=MAX_CHARACTERS, pattern="^[^\\u0000]*$")]  # PostgreSQL stores no NUL


class DevicePage(msgspec.Struct, frozen=True):
    """One page of devices, and the number of all devices that the filter selects."""

    devices: list[DeviceView]
    total: int


class RolloutRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rollout to plan or to start. Defaults and meaning are those of the options of `edgekit rollout start`.

    Attributes:
        model, version: What to roll out.
        waves: Sizes of the waves, as people write them.
        filter: The devices, as a filter; empty for all.
        targets, labels: Further conditions on the devices.
        downgrade: Also downgrade devices that ran a newer release, where the publisher allows it.
        success_threshold, error_threshold, min_failures, device_deadline_seconds, max_wait_seconds, soak_seconds,
            on_failure: As `RolloutPlan`.
        consent, window: As `RolloutPlan`.
        canaries: The devices that come first, as a wave of their own, as a filter.
        approval: As `RolloutPlan`.
        shadow, shadow_seconds, control, per_hour, ramp: As `RolloutPlan`.
        gates: Gates, as people write them, for example ``outcome drop <= 0.02``.
    """

    model: Name
    version: Version
    waves: Text = ",".join(wave.text for wave in DEFAULT_WAVES)
    filter: Text = ""
    targets: Annotated[list[Name], Meta(max_length=100)] = []
    labels: Annotated[dict[Text, Text], Meta(max_length=100)] = {}
    downgrade: bool = False
    success_threshold: Share = DEFAULTS.success_threshold
    error_threshold: Share = DEFAULTS.error_threshold
    min_failures: Annotated[int, Meta(ge=1, le=MAX_INTEGER)] = DEFAULTS.min_failures
    device_deadline_seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] = DEFAULTS.device_deadline_seconds
    max_wait_seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] = DEFAULTS.max_wait_seconds
    gates: Annotated[list[Text], Meta(max_length=MAX_GATES)] = []
    soak_seconds: Annotated[float, Meta(ge=0, le=MAX_SECONDS)] = DEFAULTS.soak_seconds
    on_failure: Literal["pause", "return"] = "pause"
    approval: Literal["", "start", "waves"] = ""
    canaries: Text = ""
    consent: bool = False
    window: Text = ""
    shadow: Annotated[int, Meta(ge=0, le=MAX_SHADOW)] = DEFAULTS.shadow
    shadow_seconds: Annotated[float, Meta(ge=1, le=MAX_SECONDS)] = DEFAULTS.shadow_seconds
    control: Literal["previous", "cohort"] = "previous"
    per_hour: Annotated[float, Meta(ge=0, le=MAX_PER_HOUR)] = DEFAULTS.per_hour
    ramp: Annotated[float, Meta(ge=1, le=MAX_RAMP)] = DEFAULTS.ramp

    @property
    def plan(self) -> RolloutPlan:
        """The plan. Raises SettingsError if it is not valid."""
        return RolloutPlan(
            waves=parse_waves(self.waves),
            success_threshold=self.success_threshold,
            error_threshold=self.error_threshold,
            min_failures=self.min_failures,
            device_deadline_seconds=self.device_deadline_seconds,
            max_wait_seconds=self.max_wait_seconds,
            gates=tuple(parse_gate(gate) for gate in self.gates),
            soak_seconds=self.soak_seconds,
            on_failure=self.on_failure,
            approval=self.approval,
            consent=self.consent,
            window=self.window,
            shadow=self.shadow,
            shadow_seconds=self.shadow_seconds,
            control=self.control,
            per_hour=self.per_hour,
            ramp=self.ramp,
        )


class StandingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A standing assignment to add: `model`, either `version` or `channel`, the devices, and the rate (0: no limit)."""

    model: Name
    version: Annotated[str, Meta(pattern=f"^({VERSION.pattern})?$")] = ""
    channel: Annotated[str, Meta(pattern=f"^({NAME_PATTERN.pattern})?$")] = ""
    filter: Text = ""
    targets: Annotated[list[Name], Meta(max_length=100)] = []
    labels: Annotated[dict[Text, Text], Meta(max_length=100)] = {}
    per_hour: Annotated[float, Meta(ge=0, le=MAX_PER_HOUR)] = 0.0


class SavedFilter(msgspec.Struct, frozen=True):
    """A saved group: its filter, how many devices it has now, and the group that it replaced."""

    name: str
    filter: str
    devices: int
    before: SavedGroup | None


class Operations:
    """The actions and views of operators. Every method may block; each call reads the present state.

    Args:
        state: The fleet's database; changes are noted in the audit log under its author.
        reader: Verified reader of the registry, used by nobody else.
        clock: Time.
    """

    def __init__(self, state: FleetState, reader: RegistryReader, clock: Clock) -> None:
        self.state = state
        self._reader = reader
        self._clock = clock
        self._registry_lock = threading.Lock()

    def by(self, author: str) -> Operations:
        """The same, for changes by another author."""
        other = Operations(self.state.by(author), self._reader, self._clock)
        other._registry_lock = self._registry_lock
        return other

    @property
    def now(self) -> float:
        """Wall clock seconds."""
        return self._clock.wall()

    def overview(self) -> Overview:
        """The fleet in numbers."""
        now = self.now
        counted = self.state.overview.count(now, self.state.offline_after_seconds)
        return msgspec.structs.replace(counted, controllers=self.state.leaders.all(now))

    def cohort(self, text: str, targets: list[str] | None = None, labels: dict[str, str] | None = None) -> Cohort:
        """The cohort of a filter, with the saved groups that it names.

        Raises:
            SettingsError: the filter cannot be read (the message has a caret), or names a group that is not there.
        """
        if text:
            parse_filter(text)
        cohort = Cohort(targets=tuple(targets or ()), labels=labels or {}, filter=text)
        return self.state.groups.resolved(cohort) if text else cohort

    def devices(self, text: str = "", *, sort: str = "name", offset: int = 0, limit: int = 50) -> DevicePage:
        """One page of the devices that a filter selects. Arguments and errors as `DeviceTable.views` and `cohort`."""
        cohort, offline_after = self.cohort(text), self.state.offline_after_seconds
        views = self.state.devices.views(self.now, offline_after, cohort=cohort, sort=sort, offset=offset, limit=limit)
        return DevicePage(views, self.state.devices.count(self.now, offline_after, cohort))

    def device(self, name: str, events: int = 20) -> DeviceDetail:
        """One device. Raises NotFoundError if it is not enrolled."""
        return describe_device(self.state, name, self.now, events)

    def hours(self, name: str, seconds: float) -> list[tuple[float, Summary]]:
        """Begin and summary of each of a device's hours in the last `seconds`, the oldest first."""
        found = self.state.telemetry.hours(name, since=self.now - seconds)
        return [(hour.start, summarise([hour.body.sketches])) for hour in found]

    def releases(self, model: str = "") -> list[CatalogueEntry]:
        """The published bundles.

        Raises:
            UnavailableError: the registry cannot be read.
            VerificationError: it cannot be trusted.
        """
        with self._registry_lock:
            self._reader.refresh()
            return self._reader.list(model or None)

    def plan(self, request: RolloutRequest) -> Planned:
        """Plan a rollout without starting it. Raises as `start`, but for refusals, which the plan lists."""
        return self._planned(request)[0]

    def start(self, request: RolloutRequest) -> RolloutDocument:
        """Start a rollout.

        Raises:
            NotFoundError: no device is selected, or none has a bundle for its target.
            SettingsError: the plan or the filter is not valid.
            RefusedError: every device would refuse the bundle, or the model has a rollout that has not ended.
            UnavailableError, VerificationError: the registry cannot be read or trusted.
        """
        planned, entries, cohort = self._planned(request)
        planned.check_refusals(request.model, request.version)
        started = self.state.rollouts.start(
            request.model, request.version, entries, plan=planned.plan, cohort=cohort, now=self.now
        )
        return document(started)

    def steer(self, number: int, event: RolloutEvent) -> RolloutDocument:
        """Apply an operator's event to a rollout.

        Raises:
            NotFoundError: there is no such rollout.
            RefusedError: its state does not allow the event.
        """
        return document(self.state.rollouts.apply(number, event, self.now))

    def label(self, name: str, changes: dict[str, str | None]) -> dict[str, str]:
        """Set labels of a device, and remove those whose value is None; returns its labels.

        Raises:
            NotFoundError: no such device is enrolled, or it has no label that is to be removed.
        """
        return self.state.lifecycle.label(name, changes, self.now)

    def quarantine(self, name: str, reason: str) -> DeviceDetail:
        """Stop giving a device anything. Raises NotFoundError if it is not enrolled."""
        self.state.lifecycle.quarantine(name, reason, self.now)
        return self.device(name)

    def release(self, name: str) -> DeviceDetail:
        """End a device's quarantine. Raises NotFoundError if it is not enrolled."""
        self.state.lifecycle.release(name, self.now)
        return self.device(name)

    def uninstall(self, model: str, names: list[str], *, dry_run: bool = False) -> list[Uninstall]:
        """Take a model off devices, or with `dry_run` only describe that.

        Raises:
            NotFoundError: a device is not enrolled, or none has the model.
            RefusedError: a rollout of the model that has not ended includes one of the devices.
        """
        table = self.state.uninstall
        return table.plan(model, names) if dry_run else table.run(model, names, self.now)

    def uninstall_selected(self, model: str, text: str, *, dry_run: bool) -> list[Uninstall]:
        """As `uninstall`, for the devices that a filter selects. Raises as `uninstall` and `cohort`."""
        cohort = self.cohort(text)
        views = self.state.devices.views(self.now, self.state.offline_after_seconds, cohort=cohort)
        if not views:
            raise self.state.nobody(cohort)
        return self.uninstall(model, [view.device for view in views], dry_run=dry_run)

    def end_alarms(self, name: str, model: str, kind: str, reason: str) -> list[Alarm]:
        """End open alarms of a device. Arguments as `AlarmTable.end`.

        Raises:
            NotFoundError: it is not enrolled, or has no such open alarm.
        """
        self.state.devices.get(name)
        return self.state.alarms.end(name, model, kind, reason, self.now)

    def commands(
        self, name: str = "", *, kind: str | None = None, number: int | None = None, limit: int = 50
    ) -> list[StoredCommand]:
        """The newest commands, of all devices or of one; with `number` that one of the device.

        Raises:
            NotFoundError: no such device is enrolled, or it has no such command.
            SettingsError: there is a number without a device.
        """
        if name:
            self.state.devices.get(name)
        elif number is not None:
            raise SettingsError("a number counts the commands of one device: name it")
        return self.state.commands.latest(name or None, kind=kind, number=number, limit=limit)

    def send_command(self, name: str, request: CommandRequest) -> StoredCommand:
        """Send a command to one device. Raises as `plan_commands` of the module commanding."""
        now = self.now
        return send(self.state, plan_commands(self.state, request, name, now, self._digests), now, request.lasts)[0]

    def plan_commands(self, request: CommandRequest, text: str, targets: list[str], labels: dict[str, str]) -> Plan:
        """Make the plan of a command to all devices of a selection; nothing is stored.

        Raises:
            SettingsError: nothing is selected by, or the filter cannot be read.
        """
        cohort = self.cohort(text, targets, labels)
        if not cohort.text:
            raise SettingsError("select devices by filter, targets or labels", advice="For all that are there: online")
        return plan_commands(self.state, request, cohort, self.now, self._digests)

    def send_commands(
        self, request: CommandRequest, text: str, targets: list[str], labels: dict[str, str]
    ) -> list[StoredCommand]:
        """Send a command to all devices of a selection. Raises as `plan_commands`."""
        return send(self.state, self.plan_commands(request, text, targets, labels), self.now, request.lasts)

    def save_group(self, name: str, text: str) -> SavedFilter:
        """Save a filter as a group. Raises SettingsError if its name or its filter is not valid."""
        before = self.state.groups.save(name, text, self.now)
        count = self.state.devices.count(self.now, self.state.offline_after_seconds, self.cohort(f"group({name})"))
        return SavedFilter(name, text, count, before)

    def remove(self, name: str) -> Removed:
        """Remove a device. Raises NotFoundError if it is not enrolled."""
        return remove_device(self.state, name, self.now)

    def make_code(self, quota: int, hours: float, name: str, target: str, labels: dict[str, str]) -> NewCode:
        """Make an enrollment code. Arguments and errors as `new_code`."""
        return new_code(self.state, self.now, quota=quota, hours=hours, name=name, target=target, labels=labels)

    def pause(self, paused: bool, reason: str = "") -> FleetPause:
        """Pause or resume the fleet. Raises RefusedError if it is so already."""
        return self.state.pause.set(paused, self.now, reason=reason)

    def add_standing(self, request: StandingRequest) -> dict[str, object]:
        """Add a standing assignment and describe it.

        Raises:
            SettingsError: neither or both of version and channel are named, the rate is out of range, the filter cannot
                be read, or there is one for the same model and devices.
            NotFoundError: the registry has no such bundle.
        """
        if bool(request.version) == bool(request.channel):
            raise SettingsError("name either version or channel")
        cohort = self.cohort(request.filter, request.targets, request.labels)
        with self._registry_lock:
            self._reader.refresh()
            entries = standing_entries(self._reader, request.model, request.version, request.channel)
        made = self.state.standing.add(
            request.model,
            entries,
            now=self.now,
            version=request.version,
            channel=request.channel,
            cohort=cohort,
            per_hour=request.per_hour,
        )
        return made.summary

    def _digests(self, model: str, version: str, targets: Collection[str]) -> Mapping[str, str]:
        with self._registry_lock:
            self._reader.refresh()
            return {target: self._reader.resolve(model, target, version).entry.sha256 for target in targets}

    def _planned(self, request: RolloutRequest) -> tuple[Planned, dict[str, Entry], Cohort]:
        plan, cohort = request.plan, self.cohort(request.filter, request.targets, request.labels)
        selected = self.state.select(cohort, self.now)
        if not selected.count():
            raise self.state.nobody(cohort)
        if request.canaries:
            plan = msgspec.structs.replace(plan, canaries=self.cohort(request.canaries))
        plan = with_chosen(self.state, plan, selected, self.now)
        with self._registry_lock:
            self._reader.refresh()
            planned, entries = plan_rollout(
                self._reader, selected, request.model, request.version, plan=plan, downgrade=request.downgrade
            )
        return planned, entries, cohort
