"""The check of the cloud tier: whether it can be reached, takes the key, and has the device's models."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from device_agents.diagnostics.check_rules import bytes_faults, clock_fault, interface_faults, states_interface
from device_agents.inference.cloud.http_client import HttpReply
from device_agents.inference.cloud_client import CloudClient, reason_of
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.state import client_inputs, client_outputs
from edgekit.errors import UnavailableError
from edgekit.preprocess import Processing, filled_inputs

CLOUD_SECONDS = 5.0


class Sent(NamedTuple):
    """One model of the device, as the cloud tier is asked for it.

    Attributes:
        there: Its name in the cloud tier.
        manifest: The installed bundle; None where there is none.
        original: True where bytes go there as clients sent them.
    """

    there: str
    manifest: Manifest | None
    original: bool = False

    @property
    def decodes_there(self) -> bool:
        """True where clients may send bytes, and the cloud tier's model gets them."""
        return self.original and self.manifest is not None and self.manifest.takes_bytes


async def check_cloud(cloud: CloudClient, models: Mapping[str, Sent]) -> str:
    """Ask the cloud tier for its health and for each model.

    Args:
        cloud: Its client.
        models: By name on the device.

    Returns:
        The finding, as text.

    Raises:
        edgekit.errors.CloudError: it cannot be reached.
        UnavailableError: something is wrong there; every fault is named.
    """
    health = await cloud.get("/v2/health/live", timeout_seconds=CLOUD_SECONDS)
    faults = [clock_fault(health.headers.get("date"), time.time())]
    if health.status != 200:
        faults.append(f"/v2/health/live answers {health.status}: {reason_of(health)}")
    found = []
    for name, sent in sorted(models.items()):
        reply = await cloud.get(f"/v2/models/{quote(sent.there, safe='')}", timeout_seconds=CLOUD_SECONDS)
        wrong = _faults(reply, sent)
        faults += wrong
        if not wrong:
            document = _document(reply)
            version = ", ".join(map(str, document.get("versions") or ())) or "of unknown version"
            unstated = "" if states_interface(document) else " (it does not state its interface)"
            form = ", and decodes the original bytes" if sent.decodes_there else ""
            found.append(f"{name} is {sent.there} {version} there{unstated}{form}")
    faults = [one for one in faults if one]
    if faults:
        raise UnavailableError(
            "; ".join(dict.fromkeys(faults)), advice="Correct the cloud tier or the agent's settings cloud_*."
        )
    return ", ".join(found) or "reachable; no model is installed or configured that it could answer for"


def _faults(reply: HttpReply, sent: Sent) -> list[str]:
    there, manifest = sent.there, sent.manifest
    if reply.status in (401, 403):
        return [f"it refuses the API key ({reply.status}: {reason_of(reply)})"]
    if reply.status == 404:
        return [f"it has no model {there!r} (404: {reason_of(reply)})"]
    if reply.status != 200:
        return [f"it answers {reply.status} for model {there!r}: {reason_of(reply)}"]
    if manifest is None or not states_interface(_document(reply)):
        return []
    document = _document(reply)
    inputs, outputs = client_inputs(manifest.inputs), client_outputs(manifest.inputs, manifest.outputs)
    faults, filled = list[str](), frozenset[str]()
    if sent.original and isinstance(manifest.processing, Processing):
        filled = filled_inputs(manifest.processing, inputs)
        faults = bytes_faults(document, manifest.processing, inputs)
    faults += interface_faults(document, inputs, outputs, filled)
    return [f"model {there!r}: {fault}" for fault in faults]


def _document(reply: HttpReply) -> dict[str, Any]:
    """The JSON object of an answer; empty for anything else."""
    try:
        found = msgspec.json.decode(reply.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
