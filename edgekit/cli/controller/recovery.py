"""`edgekit controller restore --from-devices`: a fleet without its database, from the devices' signed reports."""

from __future__ import annotations

import asyncio
import time

from edgekit.bundle.targets import builtin_targets
from edgekit.cli.common.console import needs_extra, note, print_json, print_table, printable
from edgekit.cli.common.fleet import control_transport, fleet_state
from edgekit.errors import NotFoundError
from edgekit.settings import ControlSettings


def restore_from_devices(settings: ControlSettings, *, yes: bool, seconds: float, as_json: bool) -> None:
    """List the devices whose reports the broker retains, and enroll those that are not enrolled.

    Args:
        settings: The fleet, its broker, its keys and its database.
        yes: Enroll them; else they are listed only.
        seconds: How long to listen.
        as_json: Print JSON.

    Raises:
        NotFoundError: the broker retains no report, or the director's public key is not here.
        TransportError: the broker cannot be reached.
    """
    with needs_extra("controller"):
        from edgekit.controller.recovery import collect_retained, found_devices
        from edgekit.trust.assignment import DIRECTOR
        from edgekit.trust.keys import key_path, load_public, public_path
    director = load_public(public_path(key_path(settings.keys, DIRECTOR)))
    retained = asyncio.run(collect_retained(control_transport(settings), settings.fleet, seconds))
    now = time.time()
    found = found_devices(retained, settings.fleet, director, now)
    if not found:
        raise NotFoundError(
            f"the broker {settings.broker} retains no report of fleet {settings.fleet!r}",
            advice="Devices send one when they connect: wait for their heartbeat, or restart the broker.",
        )
    targets = builtin_targets()
    with fleet_state(settings) as state:
        known = {device.name: "it is enrolled already" for device in state.devices.all()}
        known |= {
            one.device: "it was removed from the fleet" for one in state.lifecycle.refused().values() if one.removed
        }
        rows, chosen = [], []
        for one in found:
            fault = one.fault or known.get(one.name, "")
            if one.record is not None and not fault and one.record.target not in targets:
                fault = f"there is no target profile {one.record.target!r}"
            target = one.record.target if one.record else ""
            key = one.report.key.hex()[:16] if one.report else ""
            number = one.report.number if one.report else 0
            rows.append({"device": one.name, "target": target, "key": key, "report": number, "fault": fault})
            if one.record is not None and not fault:
                chosen.append(one)
        if yes and chosen:
            state.records.add(
                [(one.record, one.report) for one in chosen if one.record is not None],
                now,
                source="devices' reports",
                assignments={one.name: one.assignment for one in chosen if one.assignment is not None},
            )
    if as_json:
        print_json({"fleet": settings.fleet, "enrolled": yes, "devices": rows})
        return
    headers = ("device", "target", "key", "report", "")
    print_table(headers, [[printable(str(value)) for value in row.values()] for row in rows])
    if yes:
        note(f"{len(chosen)} enrolled in fleet {settings.fleet}; set their labels with: edgekit device label")
    else:
        note(f"{len(chosen)} can be enrolled. Compare the keys with what you know of the devices, then add --yes")
