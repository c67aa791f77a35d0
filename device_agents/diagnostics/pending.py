"""What `edgekit-agent check` says of deployments that are under way: how far, why they wait, which delta helps."""

from __future__ import annotations

from collections.abc import Mapping

from device_agents.deployment import State
from device_agents.download.deltas import kept_offers
from device_agents.download.local_blocks import slot_manifests
from device_agents.update.effects import INCOMING
from edgekit.protocols import Disk


def underway(disk: Disk, models: Mapping[str, State]) -> list[str]:
    """A line for each deployment that has not ended.

    Args:
        disk: The device's.
        models: States by model, as journalled.
    """
    held = {entry.sha256 for _, manifest in slot_manifests(disk) for entry in manifest.files}
    lines = []
    for name, state in sorted(models.items()):
        deployment = state.deployment
        if deployment is None:
            continue
        offers = kept_offers(disk, f"{INCOMING}/{name}/{deployment.digest}")
        sizes = sorted(offer.length + offer.size for offer in offers if offer.base in held)
        delta = f", a delta of {sizes[0]} bytes starts from what is here" if sizes else ""
        note = f": {state.note}" if state.note else ""
        lines.append(f"{name} {deployment.version} in {state.name.value}{delta}{note}")
    return lines
