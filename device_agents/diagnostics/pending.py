"""Lines of `edgekit-agent check` about unfinished deployments: their state, why they wait, and usable deltas."""

from __future__ import annotations

from collections.abc import Mapping

from device_agents.deployment import UpdateRecord
from device_agents.download.deltas import load_offers
from device_agents.download.local_blocks import slot_manifests
from device_agents.update.effects import INCOMING
from edgekit.protocols import Disk


def pending_deployments(disk: Disk, models: Mapping[str, UpdateRecord]) -> list[str]:
    """A line for each unfinished deployment.

    Args:
        disk: The device's folder.
        models: Journalled states by model.
    """
    present = {entry.sha256 for _, manifest in slot_manifests(disk) for entry in manifest.files}
    lines = []
    for name, state in sorted(models.items()):
        deployment = state.deployment
        if deployment is None:
            continue
        offers = load_offers(disk, f"{INCOMING}/{name}/{deployment.digest}")
        sizes = sorted(offer.length + offer.size for offer in offers if offer.base in present)
        delta = f", a delta of {sizes[0]} bytes can be used" if sizes else ""
        note = f": {state.note}" if state.note else ""
        lines.append(f"{name} {deployment.version} in {state.name.value}{delta}{note}")
    return lines
