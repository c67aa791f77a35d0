"""The check of the cloud tier: whether it can be reached, takes the key, and has the device's models."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from device_agents.diagnostics.check_rules import clock_fault, interface_faults, states_interface
from device_agents.inference.cloud.http_client import HttpReply
from device_agents.inference.cloud_client import CloudClient, reason_in
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.state import client_inputs, client_outputs
from edgekit.errors import UnavailableError

CLOUD_SECONDS = 5.0


async def check_cloud(cloud: CloudClient, models: Mapping[str, tuple[str, Manifest | None]]) -> str:
    """Ask the cloud tier for its health and for each model.

    Args:
        cloud: Its client.
        models: By name on the device: the name in the cloud tier, and the installed bundle, where there is one.

    Returns:
        The finding, as text.

    Raises:
        edgekit.errors.CloudError: it cannot be reached.
        UnavailableError: something is wrong there; every fault is named.
    """
    health = await cloud.get("/v2/health/live", timeout_seconds=CLOUD_SECONDS)
    faults = [clock_fault(health.headers.get("date"), time.time())]
    if health.status != 200:
        faults.append(f"/v2/health/live answers {health.status}: {reason_in(health.body)}")
    found = []
    for name, (there, manifest) in sorted(models.items()):
        reply = await cloud.get(f"/v2/models/{quote(there, safe='')}", timeout_seconds=CLOUD_SECONDS)
        wrong = _faults(reply, there, manifest)
        faults += wrong
        if not wrong:
            document = _document(reply)
            version = ", ".join(map(str, document.get("versions") or ())) or "of unknown version"
            unstated = "" if states_interface(document) else " (it does not state its interface)"
            found.append(f"{name} is {there} {version} there{unstated}")
    faults = [one for one in faults if one]
    if faults:
        raise UnavailableError(
            "; ".join(dict.fromkeys(faults)), advice="Correct the cloud tier or the agent's settings cloud_*."
        )
    return ", ".join(found) or "reachable; no model is installed or configured that it could answer for"


def _faults(reply: HttpReply, there: str, manifest: Manifest | None) -> list[str]:
    if reply.status in (401, 403):
        return [f"it refuses the API key ({reply.status}: {reason_in(reply.body)})"]
    if reply.status == 404:
        return [f"it has no model {there!r} (404: {reason_in(reply.body)})"]
    if reply.status != 200:
        return [f"it answers {reply.status} for model {there!r}: {reason_in(reply.body)}"]
    if manifest is None or not states_interface(_document(reply)):
        return []
    inputs, outputs = client_inputs(manifest.inputs), client_outputs(manifest.inputs, manifest.outputs)
    return [f"model {there!r}: {fault}" for fault in interface_faults(_document(reply), inputs, outputs)]


def _document(reply: HttpReply) -> dict[str, Any]:
    """The JSON object of an answer; empty for anything else."""
    try:
        found = msgspec.json.decode(reply.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
