"""Remote commands of operators: who gets one, and with which arguments. Command line, API and pages share this."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgekit.bundle.manifest import NAME_PATTERN, VERSION
from edgekit.errors import DataError, RefusedError
from edgekit.mqtt.command_arguments import COLLECT, COMMAND_KINDS, PROFILE, parse_arguments
from edgekit.rollout.cohort import Cohort
from edgekit.state import DeviceView, FleetState, StoredCommand

EXPIRES_SECONDS, PROFILE_EXPIRES_SECONDS = 60.0, 600.0
MAX_EXPIRES_SECONDS = 86_400.0

# The digest of a published bundle for each target profile, given its model, its version, and the targets.
Digests = Callable[[str, str, Collection[str]], Mapping[str, str]]

Kind = Annotated[str, Meta(pattern=f"^({'|'.join(COMMAND_KINDS)})$")]


class CommandRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A command to send.

    Attributes:
        kind: self-test, profile, logs, restart, set or collect.
        args: Its arguments: profile has model and version, and may have seconds, limit_seconds and memory_mib; logs may
            have lines; set has values (texts by setting) and may have restart; collect may have samples, seconds,
            reasons, share and model.
        expires_seconds: Time in which devices may begin; null for 60, and 600 for profile.
    """

    kind: Kind
    args: dict[str, Any] = {}
    expires_seconds: Annotated[float, Meta(ge=1, le=MAX_EXPIRES_SECONDS)] | None = None

    @property
    def lasts(self) -> float:
        """Seconds in which devices may begin."""
        return self.expires_seconds or (PROFILE_EXPIRES_SECONDS if self.kind == PROFILE else EXPIRES_SECONDS)


class PlannedCommand(msgspec.Struct, frozen=True):
    """A command that would be sent to a device."""

    device: str
    online: bool
    kind: str
    args: dict[str, Any]


class Plan(msgspec.Struct, frozen=True):
    """The devices that get a command.

    Attributes:
        commands: One for each device.
        held: Selected devices that are in quarantine, and get none.
    """

    commands: list[PlannedCommand]
    held: list[str]


def plan_commands(state: FleetState, request: CommandRequest, to: str | Cohort, now: float, digests: Digests) -> Plan:
    """Make the plan of a command; nothing is stored.

    Args:
        state: The fleet.
        request: The command.
        to: The name of one device, or a cohort with its groups.
        now: Wall clock seconds.
        digests: Looks bundles up, for `profile`.

    Raises:
        NotFoundError: there is no such device, or no device is selected.
        RefusedError: it, or every one of them, is in quarantine.
        DataError: the arguments are not valid.
    """
    devices, held = _served(state, to, now)
    args = _arguments(request, sorted({one.target for one in devices}), digests)
    return Plan([PlannedCommand(one.device, one.online, request.kind, args[one.target]) for one in devices], held)


def send(state: FleetState, plan: Plan, now: float, lasts: float) -> list[StoredCommand]:
    """Store the commands of a plan, all or none; a controller sends them to whoever is online within `lasts` seconds.

    Raises:
        RefusedError: a device was put into quarantine meanwhile.
    """
    kind = plan.commands[0].kind
    return state.commands.add_all(kind, {one.device: one.args for one in plan.commands}, now=now, expires=now + lasts)


def _served(state: FleetState, to: str | Cohort, now: float) -> tuple[list[DeviceView], list[str]]:
    offline_after = state.offline_after_seconds
    if isinstance(to, str):
        views = state.devices.views(now, offline_after, to)
        if not views:
            state.devices.get(to)  # raises, with the names that are there
        state.commands.check_served(to)
        return views, []
    views = state.devices.views(now, offline_after, cohort=to)
    if not views:
        raise state.nobody(to)
    served = [view for view in views if not view.quarantine]
    if not served:
        raise RefusedError("every selected device is in quarantine", advice="See: edgekit device list")
    return served, [view.device for view in views if view.quarantine]


def _arguments(request: CommandRequest, targets: list[str], digests: Digests) -> dict[str, dict[str, Any]]:
    """The arguments by target profile: a profiled bundle differs between targets."""
    given = dict(request.args)
    if request.kind == COLLECT and given.get("share") and "reasons" not in given:
        given["reasons"] = []  # devices take all reasons where none are named, and their answers are no fair sample
    if request.kind != PROFILE:
        parse_arguments(request.kind, given)
        return dict.fromkeys(targets, given)
    model, version = str(given.get("model", "")), str(given.get("version", ""))
    if not NAME_PATTERN.fullmatch(model) or not VERSION.fullmatch(version):
        raise DataError("profile needs the model and the version of a published bundle: model, and version X.Y.Z")
    if odd := sorted({"target", "digest"} & set(given)):
        raise DataError(f"profile looks {' and '.join(odd)} up for each device; it is not given")
    found = digests(model, version, targets)
    arguments = {target: {**given, "target": target, "digest": found[target]} for target in targets}
    for one in arguments.values():
        parse_arguments(PROFILE, one)
    return arguments
